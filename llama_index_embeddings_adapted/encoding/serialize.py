"""A base model as a dict without secrets, and back.

What never leaves this process: secrets in names, values and addresses.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Collection
from inspect import Parameter, signature
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from llama_index.core.base.embeddings.base import BaseEmbedding

from ..core.files import llama_cache
from ..errors import FolderError, quote_some

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

#: Taken by BaseEmbedding, but not by the constructors of all its subclasses.
_SET_AFTERWARDS = ("num_workers",)
_NEVER = ("class_name", "embeddings_cache", "callback_manager", "rate_limiter")
_PACKAGE = "package:"
#: Of the machine at hand, never to be trusted from a folder, or nothing that changes vectors.
_NOT_KEPT = frozenset(
    ("self", "async_http_client", "cache_dir", "cache_folder", "callback_manager", "device",
     "http_client", "model", "model_kwargs", "parallel_process", "show_progress_bar", "sketch",
     "target_devices", "tokenizer", "training", "trust_remote_code")
)  # fmt: skip
_OMIT: Any = object()  # marks a value that must not be written


def base_name(model: BaseEmbedding) -> str:
    """Return class and model name to be shown: of a path the end, of an address no user."""
    name = type(model).__name__
    if model.model_name in ("", "unknown"):
        return name
    path = Path(model.model_name)
    shown = "/".join(path.parts[-2:]) if path.is_absolute() else model.model_name
    return f"{name}({without_url_secrets(shown)})"


def names_secret(name: str) -> bool:
    """Return whether a setting of this name is a secret."""
    return _SECRET_NAME.search(name) is not None


def looks_secret(text: str) -> bool:
    """Return whether a text contains what looks like a key."""
    return _SECRET_VALUE.search(text) is not None


def _leads_elsewhere(name: str, value: object) -> bool:
    """Return whether a setting holds, or is by its name, an address other than this machine's."""
    if isinstance(value, dict):
        return any(_leads_elsewhere(str(key), item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return any(_leads_elsewhere(name, item) for item in value)
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
    """Drop the users of URLs, and the query of a text that is one URL."""
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


def describe_base(model: BaseEmbedding) -> dict[str, Any]:
    """Return what is needed to build the model again, but for its secrets.

    ``class_name``, ``import_path``, ``settings``, as JSON knows them, and the names of those
    ``omitted``, or saved in part, because they are or look like secrets.
    """
    settings: dict[str, Any] = {}
    omitted: list[str] = []
    for name, value in model.to_dict().items():
        if name in _NEVER or value is None:
            continue
        clean = _OMIT if names_secret(name) else _without_secrets(value)
        if clean is not _OMIT:
            settings[name] = portable(clean) if name == "model_name" else clean
        if clean is _OMIT or (clean != value and not isinstance(value, tuple)):
            omitted.append(name)  # or a part of it
    cls = type(model)
    settings.update(_kept_aside(model))
    named = {"class_name": cls.class_name(), "import_path": f"{cls.__module__}.{cls.__qualname__}"}
    return {**named, "settings": settings, "omitted": omitted}


def portable(name: str) -> str:
    """Return a model's path as other machines know it: in a package, or a name on the hub."""
    path = Path(name)
    if not path.is_absolute():
        return name
    for number, part in enumerate(path.parts):
        if part.startswith("models--") and "snapshots" in path.parts[number:]:
            return part.removeprefix("models--").replace("--", "/")
        if part in ("site-packages", "dist-packages") and number + 1 < len(path.parts):
            return _PACKAGE + "/".join(path.parts[number + 1 :])
    return name


def located(name: str) -> str:
    """Return where this machine has what :func:`portable` named, or raise a FolderError."""
    if not name.startswith(_PACKAGE):
        return name
    package, *parts = name.removeprefix(_PACKAGE).split("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations or ".." in parts:
        raise FolderError(
            f"The base model is in the package {package}, which is not installed. Install it, or "
            "pass base_embed_model=…."
        )
    return str(Path(spec.submodule_search_locations[0], *parts))


def _kept_aside(model: BaseEmbedding) -> dict[str, Any]:
    """Return what a sentence-transformers model was built with and LlamaIndex has no field for."""
    inner: Any = getattr(model, "_model", None)
    if not hasattr(inner, "truncate_dim"):
        return {}
    dtype = str(getattr(inner, "dtype", "torch.float32")).removeprefix("torch.")
    backend = getattr(inner, "backend", "torch")
    config = getattr(getattr(inner[0], "auto_model", None), "config", None)
    found = {
        "truncate_dim": inner.truncate_dim,
        "backend": None if backend == "torch" else backend,
        "revision": getattr(config, "_commit_hash", None),  # None for a folder
        "model_kwargs": None if dtype == "float32" else {"dtype": dtype},
    }
    return {name: value for name, value in found.items() if value is not None}


def unrecorded(model: BaseEmbedding, settings: Collection[str]) -> list[str]:
    """Return arguments of a model's constructor that are kept in no field and no plain value."""
    missing = []
    for name, parameter in signature(type(model).__init__).parameters.items():
        plain = parameter.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
        kept = name in settings or name in type(model).model_fields or name in _NOT_KEPT
        value = getattr(model, f"_{name}", None)
        if plain and not kept and (parameter.default is Parameter.empty or value is not None):
            missing.append(name)
    return missing


def rebuild_base(description: object, **secrets: Any) -> BaseEmbedding:
    """Build the model that :func:`describe_base` described, or raise a FolderError.

    Only classes of LlamaIndex's integrations, registered with it, or of modules already imported
    are considered: a folder cannot make us import any other. Nor can it have code of its own
    loaded, or have texts, and a key from the environment, sent to an address that is neither this
    machine's nor what the class would ask anyway, unless confirmed in ``secrets``: settings to add
    or override.
    """
    if not isinstance(description, dict):
        raise FolderError("No base model is described here. Pass base_embed_model=….")
    cls = _find_class(str(description.get("class_name")), str(description.get("import_path")))
    saved = description.get("settings")
    saved = saved if isinstance(saved, dict) else {}
    asking = [name for name, value in saved.items() if _asks_for_code(name, value)]
    if asking:
        raise FolderError(
            f"The base model's settings ask for code to be loaded ({quote_some(asking)}). Build it "
            "yourself if you trust that code, and pass base_embed_model=…."
        )
    omitted = [str(name) for name in description.get("omitted") or [] if name not in secrets]
    hint = f" It was saved without {', '.join(omitted)}: pass it again." if omitted else ""
    _refuse_addresses(cls, saved, secrets, hint=hint)
    settings = {**saved, **secrets}
    if isinstance(settings.get("model_name"), str):
        settings["model_name"] = located(settings["model_name"])
    later = {name: settings.pop(name) for name in _SET_AFTERWARDS if name in settings}
    try:
        model = cls.from_dict(settings)
    except Exception as cause:  # constructors raise what they like; the advice is the same
        if isinstance(cause, OSError):
            llama_cache()
        raise FolderError(
            f"The base model {cls.__name__} cannot be built from its saved settings ({cause})."
            f"{hint} Or pass base_embed_model=…."
        ) from cause
    for name, value in later.items():
        setattr(model, name, value)
    return model


def _asks_for_code(name: str, value: Any) -> bool:
    if name == "trust_remote_code" and value:
        return True
    if isinstance(value, dict):
        return any(_asks_for_code(str(key), item) for key, item in value.items())
    return isinstance(value, list) and any(_asks_for_code("", item) for item in value)


def _refuse_addresses(
    cls: type[BaseEmbedding], settings: dict[str, Any], confirmed: dict[str, Any], *, hint: str
) -> None:
    """Refuse addresses elsewhere, unless the class would ask them without being told."""
    known = ("model_name", *confirmed)
    named = {n: v for n, v in settings.items() if n not in known and _leads_elsewhere(n, v)}
    if not named:
        return
    left_out = (*named, *_SET_AFTERWARDS)
    others = {name: value for name, value in settings.items() if name not in left_out}
    try:
        plain = cls.from_dict({**others, **confirmed})
        strange = [name for name, value in named.items() if getattr(plain, name, None) != value]
    except Exception:  # it cannot do without them, or without its secrets
        strange = list(named)
    if strange:
        raise FolderError(
            f"The settings of the base model {cls.__name__} name an address that texts and keys "
            f"would be sent to ({quote_some(f'{name}={named[name]}' for name in strange)}). If it "
            f"is yours, pass it again: from_pretrained(…, {strange[0]}=…).{hint} Or pass "
            "base_embed_model=…."
        )


def _find_class(class_name: str, import_path: str) -> type[BaseEmbedding]:
    from llama_index.core.embeddings.loading import RECOGNIZED_EMBEDDINGS

    module_name, _, qualname = import_path.rpartition(".")
    known = RECOGNIZED_EMBEDDINGS.get(class_name)
    if known is not None and f"{known.__module__}.{known.__qualname__}" == import_path:
        return known
    if module_name.startswith(("llama_index.core.", "llama_index.embeddings.")):
        try:
            module = importlib.import_module(module_name)
        except ImportError as cause:
            raise FolderError(
                f"The base model's class is {import_path}, which is not installed ({cause}). "
                "Install its package, or pass base_embed_model=…."
            ) from cause
    else:
        module = sys.modules.get(module_name)  # type: ignore[assignment]
    cls = getattr(module, qualname, known)
    if not (isinstance(cls, type) and issubclass(cls, BaseEmbedding)):
        raise FolderError(
            f"The base model's class is {import_path}, which is not known here. Pass "
            "base_embed_model=…, or import the module that defines it first."
        )
    return cls


def _without_secrets(value: Any) -> Any:
    """Return ``value`` as JSON knows it and without secrets, or ``_OMIT``."""
    if isinstance(value, str):
        return _OMIT if looks_secret(value) else without_url_secrets(value)
    if isinstance(value, dict):
        public = {str(key): item for key, item in value.items() if not names_secret(str(key))}
        kept = {key: _without_secrets(item) for key, item in public.items()}
        return {key: item for key, item in kept.items() if item is not _OMIT}
    if isinstance(value, (list, tuple)):
        return [item for item in map(_without_secrets, value) if item is not _OMIT]
    return value if isinstance(value, (int, float, bool, type(None))) else _OMIT
