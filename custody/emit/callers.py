"""Who calls: what an application's hook `identify` returns of a request, and how a key that it returned is kept out.

The middleware cannot know whether a key was valid. So the application says it: `identify(scope)` returns an `Identity`,
a `Failure`, or None if the request came without a key and needs none.
"""

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from custody.emit.graphql import clean_name
from custody.emit.request import Headers
from custody.emit.secret_text import REDACTED

__all__ = ["CONNECTION_INIT", "Caller", "Failure", "Identify", "Identity"]

CONNECTION_INIT: Final = "custody.connection_init"
"""Where `identify` finds the payload of a WebSocket's `connection_init` in the scope."""

_SECRET_HEADERS: Final = frozenset((b"authorization", b"proxy-authorization", b"x-api-key", b"x-auth-token", b"cookie"))
_WORD_ENDS = frozenset((b"", b" ", b"\t", b";"))
_SHORTEST = 8
"""Characters of a key at least: shorter texts stand in a reason by chance."""
_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Identity:
    """The API key of a caller, which is valid.

    Attributes:
        api_key_id: its id, never its secret.
        key_version: its version.
        key_age_days: days since it was made.
    """

    api_key_id: str = field(repr=False)
    key_version: int | None = None
    key_age_days: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a caller was not authenticated.

    Attributes:
        reason: such as `expired`.
        api_key_id: the id of the key that was shown, if it is known.
        key_version: its version.
        key_age_days: days since it was made.
    """

    reason: str
    api_key_id: str | None = field(default=None, repr=False)
    key_version: int | None = None
    key_age_days: int | None = None


Caller = Identity | Failure | None
Identify = Callable[[Any], Caller | Awaitable[Caller]]
"""The hook: takes the ASGI scope of a request that the application has answered."""


def without_keys(caller: Caller, headers: Headers, connection_init: object = None) -> Caller:
    """Return a caller without the keys of its request: a hook may return a key as its id, or a reason that has it.

    Args:
        caller: what the hook returned.
        headers: the request's headers.
        connection_init: the payload of a WebSocket's `connection_init`.

    Raises:
        TypeError: the hook returned something else.
    """
    if caller is None:
        return None
    if isinstance(caller, Identity):
        if connection_init is None and not _may_show(caller.api_key_id, headers):
            return caller
    elif not isinstance(caller, Failure):
        raise TypeError
    identity = caller.api_key_id
    keys = {*_keys(headers), *_texts(connection_init)}
    shown = identity is not None and identity in keys
    if isinstance(caller, Identity):
        return Identity(REDACTED, caller.key_version, caller.key_age_days) if shown else caller
    reason = clean_name(caller.reason) or "unknown"
    for key in sorted(keys, key=len, reverse=True):
        if len(key) >= _SHORTEST:
            reason = reason.replace(key, REDACTED)
    return Failure(reason, REDACTED if shown else identity, caller.key_version, caller.key_age_days)


def _may_show(identity: str, headers: Headers) -> bool:
    """Return whether an id may be a key: a word of a header that has one, or hidden there in base64."""
    text = identity.encode("latin-1", "replace")
    for name, value in headers:
        if name in _SECRET_HEADERS:
            if value[:6].lower() == b"basic ":
                return True
            # The begin of a key may be its id, as in `key-17.secret`.
            if text in value and any(value[end : end + 1] in _WORD_ENDS for end in _ends(text, value)):
                return True
    return False


def _ends(text: bytes, value: bytes) -> Iterator[int]:
    at = value.find(text) if text else -1
    while at >= 0:
        yield at + len(text)
        at = value.find(text, at + 1)


def _keys(headers: Headers) -> Iterator[str]:
    """Yield what may be a key in the headers: their values, and the words in them."""
    for name, value in headers:
        if name.lower() in _SECRET_HEADERS:
            text = value.decode("latin-1")
            yield text
            scheme, _, token = text.partition(" ")
            yield from (word.partition("=")[2] or word for word in text.replace(";", " ").split())
            if scheme.lower() == "basic":
                yield from _basic(token)


def _basic(token: str) -> Iterator[str]:
    try:
        decoded = base64.b64decode(token.strip(), validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return
    yield decoded
    yield decoded.partition(":")[2]


def _texts(value: object) -> Iterable[str]:
    """Return the texts in a payload, and the words in them."""
    texts: set[str] = set()
    waiting = [value]
    while waiting and len(texts) < _KEPT:
        item = waiting.pop()
        if isinstance(item, str):
            texts.update((item, *item.split()))
        elif isinstance(item, Mapping):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return texts
