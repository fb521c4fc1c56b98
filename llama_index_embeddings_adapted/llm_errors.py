"""What an error of an LLM client means: wait, skip, or give up. Clients differ; signs decide."""

from __future__ import annotations

import random
from collections.abc import Iterator

from llama_index_embeddings_adapted.errors import shorten
from llama_index_embeddings_adapted.redaction import looks_secret, without_url_secrets

#: Pauses before another attempt double from the first to the longest, unless the server names one.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
_REFUSED = {
    401: "refused the key",
    402: "wants to be paid",
    403: "forbids this",
    404: "was not found",
}
_USELESS_TO_REPEAT = (400, 413, 422)
_DROPPED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)  # reached, then lost


def hopeless(error: Exception, *, reached: bool) -> str | None:
    """Say why no call can succeed, and what to do; None where another one may.

    Args:
        error: What a call raised.
        reached: Whether the server answered before, so that it may be away for a moment only.
    """
    status = _status(error)
    if status in _REFUSED or getattr(error, "code", None) == "insufficient_quota":
        what = _REFUSED.get(status or 0, "has no quota left")
        return f"{what}: {without_secrets(error)} Check key, model name and address."
    if _is_unreachable(error) and not reached:
        why = without_secrets(error)
        return f"cannot be reached: {why} Is the server running, and the address right?"
    return None


def useless_to_repeat(error: Exception) -> bool:
    """Return whether the server will refuse the same request again, whatever it is."""
    return _status(error) in _USELESS_TO_REPEAT


def without_secrets(error: BaseException) -> str:
    """Return what an error says, on one line, unless it shows a key."""
    text = " ".join(f"{type(error).__name__}: {without_url_secrets(str(error))}".split())
    return f"{type(error).__name__}." if looks_secret(text) else shorten(text, 300)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: Exception) -> int | None:
    """Return the HTTP status that an error stands for, as the usual clients name it."""
    for cause in _chain(error):
        response = getattr(cause, "response", None)
        for holder, name in ((cause, "status_code"), (response, "status_code"), (cause, "status")):
            value = getattr(holder, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None


def _is_unreachable(error: Exception) -> bool:
    return any(
        (isinstance(cause, ConnectionError) and not isinstance(cause, _DROPPED))
        or type(cause).__name__ == "ConnectError"  # httpx, httpcore: never connected
        for cause in _chain(error)
    )


def pause_s(error: Exception, attempt: int) -> float:
    """Return how long to wait: as the server asks, or longer each time, with some chance in it."""
    for cause in _chain(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        try:
            asked = float(headers.get("retry-after", ""))
        except (TypeError, ValueError, AttributeError):
            continue
        if asked >= 0:  # a server may say anything, NaN included
            return min(asked, LONGEST_PAUSE_S)
    pause = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)
    return pause * random.uniform(0.5, 1.0)
