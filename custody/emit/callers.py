"""Who calls: what an application's hook `identify` returns of a request, and how a key that it returned is kept out.

The middleware cannot know whether a key was valid. So the application says it: `identify(scope)` returns an `Identity`,
a `Failure`, or None if the request came without a key and needs none.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, unquote_plus

from custody.emit.graphql import clean_name
from custody.emit.request import Headers
from custody.emit.secret_text import REDACTED

__all__ = ["CONNECTION_INIT", "Caller", "Failure", "Identify", "Identity"]

CONNECTION_INIT: Final = "custody.connection_init"
"""Where `identify` finds the payload of a WebSocket's `connection_init` in the scope."""

_PLAIN_HEADERS: Final = frozenset(
    b"accept accept-encoding accept-language connection content-length content-type date forwarded host origin"
    b" traceparent user-agent x-forwarded-for x-request-id".split()
)
"""Headers in which nobody sends a key. Any other may have one."""
_NAMING = (b"id", b"identifier", b"name", b"user", b"username", b"email", b"subject", b"dn")
"""Ends of names of headers by which a gateway says who calls, such as `X-Consumer-Id`: an id may stand there."""
_SPLIT = re.compile(r"[\s;,&]+")
_WORD_ENDS = frozenset((b"", b" ", b"\t", b";", b",", b"&", b'"', b"'"))
_QUOTES = "\"'"
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


def without_keys(caller: Caller, headers: Headers, query_string: bytes = b"", connection_init: object = None) -> Caller:
    """Return a caller without the keys of its request: a hook may return a key as its id, or a reason that has it.

    Args:
        caller: what the hook returned.
        headers: the request's headers.
        query_string: what stands behind the `?` of its address.
        connection_init: the payload of a WebSocket's `connection_init`.

    Raises:
        TypeError: the hook returned something else.
    """
    if caller is None:
        return None
    if isinstance(caller, Identity):
        if connection_init is None and not _may_show(caller.api_key_id, headers, query_string):
            return caller
    elif not isinstance(caller, Failure):
        raise TypeError
    identity = caller.api_key_id
    keys = {*_keys(headers), *_of_query(query_string), *_texts(connection_init)} - {""}
    shown = identity is not None and identity in keys
    if isinstance(caller, Identity):
        return Identity(REDACTED, caller.key_version, caller.key_age_days) if shown else caller
    reason = clean_name(caller.reason) or "unknown"
    for key in sorted(keys, key=len, reverse=True):
        if len(key) >= _SHORTEST:
            reason = reason.replace(key, REDACTED)
    return Failure(reason, REDACTED if shown else identity, caller.key_version, caller.key_age_days)


def _may_show(identity: str, headers: Headers, query_string: bytes) -> bool:
    """Return whether an id may be a key: a word of a header or of the address, or hidden there in base64."""
    # Bytes of a header are Latin-1 by the standard, and UTF-8 in practice.
    texts = {identity.encode("latin-1", "replace"), identity.encode("utf-8", "replace")}
    if query_string and (b"%" in query_string or b"+" in query_string or any(text in query_string for text in texts)):
        return True
    for name, value in headers:
        basic = value[:6].lower() == b"basic "
        if (basic or any(text in value for text in texts)) and _may_have_key(name):
            # The begin of a key may be its id, as in `key-17.secret`.
            ends = (value[end : end + 1] for text in texts for end in _ends(text, value))
            if basic or any(end in _WORD_ENDS for end in ends):
                return True
    return False


def _may_have_key(name: bytes) -> bool:
    """Return whether a header of this name may have a key."""
    name = name.lower()
    return name not in _PLAIN_HEADERS and re.split(rb"[-_]", name)[-1] not in _NAMING


def _ends(text: bytes, value: bytes) -> Iterator[int]:
    at = value.find(text) if text else -1
    while at >= 0:
        yield at + len(text)
        at = value.find(text, at + 1)


def _keys(headers: Headers) -> Iterator[str]:
    """Yield what may be a key in the headers: their values, and the words in them."""
    for name, value in headers:
        for text in {value.decode("latin-1"), value.decode("utf-8", "replace")} if _may_have_key(name) else ():
            yield text
            scheme, _, token = text.partition(" ")
            for word in _SPLIT.split(text):
                yield from (word, word.strip(_QUOTES), word.partition("=")[2].strip(_QUOTES))
            if scheme.lower() == "basic":
                yield from _basic(token)


def _of_query(query_string: bytes) -> Iterator[str]:
    """Yield what may be a key in the address: each value, as it is sent and as it is read."""
    text = query_string.decode("latin-1")
    yield text
    for pair in text.split("&"):
        value = pair.partition("=")[2] or pair
        yield from (value, unquote(value), unquote_plus(value))


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
