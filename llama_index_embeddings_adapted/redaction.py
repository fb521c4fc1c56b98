"""What never leaves this process: secrets in names, values and addresses."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_SECRET_NAME = re.compile(
    r"api_?key|secret|pass(w|phrase)|credential|private_?key|access_?key|authori[sz]ation|headers"
    r"|cookies|bearer|(^|_|-)(token|auth|key|pwd)$",
    re.IGNORECASE,
)
#: What keys of the usual providers look like, wherever they hide.
_SECRET_VALUE = re.compile(
    r"\b(sk|pk|rk|hf|gsk|xai|pa|ghp|glpat)[-_][A-Za-z0-9_\-]{12,}|\bAIza\w{20,}"
    r"|\b(Bearer|Basic) +[A-Za-z0-9+/=._~\-]{8,}"
)
_ADDRESS_NAME = re.compile(
    r"(^|_)(url|uri|host|hostname|endpoint|api_base|base_url|prox(y|ies)|server|address)$",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"(?<=://)[^/?#\s]*@")


def names_secret(name: str) -> bool:
    """Return whether a setting of this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def looks_secret(text: str) -> bool:
    """Return whether a text contains what looks like a key."""
    return _SECRET_VALUE.search(text) is not None


def names_address(name: str, value: object) -> bool:
    """Return whether a setting holds, or is by its name, an address other than this machine's."""
    if isinstance(value, dict):
        return any(names_address(str(key), item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(names_address(name, item) for item in value)
    if not isinstance(value, str) or not value or re.search(r"\s", value):
        return False
    if "://" not in value and _ADDRESS_NAME.search(name) is None:
        return False
    try:
        host = urlsplit(value if "://" in value else f"//{value}").hostname
    except ValueError:
        return True
    return host not in ("localhost", "127.0.0.1", "::1")


def without_url_secrets(text: str) -> str:
    """Drop the user and password of URLs, and the query of a text that is a URL.

    Other texts, also those that mention a URL, come back as they are.
    """
    if "://" not in text:
        return text
    text = _USER_IN_URL.sub("", text)
    if re.search(r"\s", text):
        return text
    try:
        parts = urlsplit(text)
    except ValueError:  # brackets that are no address
        return text
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def without_keys(text: str) -> str:
    """Black out what looks like a key, and drop the users of URLs, wherever they stand."""
    return _SECRET_VALUE.sub("…", _USER_IN_URL.sub("", text))
