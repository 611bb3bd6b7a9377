"""Writes `trust.json`: what others need to verify an archive (FORMAT.md, Trust).

Rules:
1. A new file has no secret: public parts of Ed25519 keys, ids of all other keys, the archive's pin.
2. An existing file is only extended. Its keys, heads, witnesses and accepted findings stay. A key can be added, or end
   sooner; a pin can be added if there is none. Anything that contradicts the file is an error.
3. A change is made under a lock, checked as a verifier reads it, and written in one step. The file's mode stays.
"""

import json
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from custody.errors import ConfigurationError
from custody.findings import Accepted
from custody.format.archive_file import Pin
from custody.format.times import format_time
from custody.keys.files import encode_base64, locked, parse_moment, read_all, write
from custody.keys.key import BEGINNING, PublicKey
from custody.keys.trust import TRUST_LIMIT, Trust, load_trust, merge_until, read_trust
from custody.tlog.head import Head

MODE = 0o644
"""The mode of a new file: it has no secret, and is meant for others."""

_ACCEPTED_FIELDS = ("finding", "log", "sequence", "key", "sha256", "reason", "by", "at")


@dataclass(frozen=True, slots=True)
class Published:
    """What `publish` did to a file.

    Attributes:
        made: whether the file is new.
        pinned: whether the archive's pin was added.
        added: ids of the added keys.
        narrowed: ids of the keys that now end sooner or start later.
    """

    made: bool
    pinned: bool
    added: tuple[str, ...]
    narrowed: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.made:
            return "new"
        parts = [
            *(["the archive's pin"] if self.pinned else []),
            *(f"key {key}" for key in self.added),
            *(f"the end of key {key}" for key in self.narrowed),
        ]
        return f"extended by {', '.join(parts)}" if parts else "nothing to add"


def encode(pin: Pin | None, keys: Sequence[PublicKey]) -> bytes:
    """Return the bytes of a new `trust.json`."""
    document = {
        "format": "custody/trust/1",
        "archive": None if pin is None else _pin(pin),
        "keys": [_entry(key) for key in keys],
        "heads": {},
        "witnesses": [],
        "quorum": 0,
        "retention_days": None,
        "accepted": [],
    }
    return _encode(document)


def check_pin(path: Path, pin: Pin | None) -> None:
    """Raise an error if a `trust.json` pins another archive. A missing file, or one without a pin, is fine.

    Args:
        path: the file.
        pin: of the archive. None if it does not exist yet: then any pin is of another archive.

    Raises:
        ConfigurationError: it pins another archive, or cannot be used.
    """
    if path.exists():
        _check_pin(load_trust(path).archive, pin, f"trust {path}")


def publish(path: Path, pin: Pin, keys: Sequence[PublicKey]) -> Published:
    """Write a `trust.json`, or extend the existing one.

    Args:
        path: the file.
        pin: of the archive.
        keys: the writer's keys.

    Raises:
        ConfigurationError: the file cannot be written, or contradicts the pin or a key.
    """
    if not path.exists():
        write(path, encode(pin, keys), create=True, what="trust", mode=MODE)
        return Published(made=True, pinned=True, added=tuple(key.id for key in keys))
    what, done = f"trust {path}", Published(made=False, pinned=False, added=())

    def extend(document: dict[str, Any], before: Trust) -> None:
        nonlocal done
        _check_pin(before.archive, pin, what)
        entries = document.setdefault("keys", [])
        known = {entry["id"]: entry for entry in entries}
        added = [key for key in keys if key.id not in known]
        narrowed = [key.id for key in keys if key.id in known and _narrow(known[key.id], key, what)]
        entries.extend(_entry(key) for key in added)
        document["archive"] = _pin(pin)
        done = Published(
            made=False,
            pinned=before.archive is None,
            added=tuple(key.id for key in added),
            narrowed=tuple(narrowed),
        )

    _change(path, extend)
    return done


def accept(path: Path, judged: Sequence[Accepted]) -> int:
    """Add accepted findings to a `trust.json` (`custody accept`).

    Args:
        path: the file.
        judged: the entries. Those that the file has already, by any person, are not added again.

    Returns:
        How many were added.

    Raises:
        ConfigurationError: the file cannot be used or written, or an entry is malformed.
    """
    added: list[Accepted] = []

    def add(document: dict[str, Any], before: Trust) -> None:
        there = {_place(one) for one in before.accepted}
        added.extend(one for one in judged if _place(one) not in there)
        document.setdefault("accepted", []).extend(
            {name: value for name in _ACCEPTED_FIELDS if (value := getattr(one, name)) is not None} for one in added
        )

    _change(path, add)
    return len(added)


def end_key(path: Path, key_id: str, heads: Mapping[str, Head]) -> Mapping[str, Head]:
    """End a leaked key in a `trust.json`: from then on it counts only within these heads.

    Args:
        path: the file.
        key_id: which key.
        heads: by `<log>/<partition>`. In a log that is not named, the key ends at size 0. If the key has an end
            already, the smaller head of each log counts.

    Returns:
        Where the key ends now.

    Raises:
        ConfigurationError: the file cannot be used or written, has no such key, or has another root for a size.
    """
    what = f"trust {path}"
    until: Mapping[str, Head] = {log: head for log, head in heads.items() if head.size}

    def end(document: dict[str, Any], before: Trust) -> None:
        nonlocal until
        entry = next((entry for entry in document.get("keys", []) if entry["id"] == key_id), None)
        if entry is None:
            known = ", ".join(str(entry["id"]) for entry in document.get("keys", []))
            raise ConfigurationError(
                f"{what}: it has no key {key_id!r}; it has {known or 'none'}. To add the writer's keys, run"
                " `custody keys export`"
            )
        if key_id not in before.keys:
            raise ConfigurationError(
                f"{what}: the key {key_id!r} is {entry['algorithm']}, which signs nothing, so it cannot be ended. With"
                " its secret one can check guesses about events: run `custody keys rotate`"
            )
        for log, head in until.items():
            known_head = before.heads.get(log)
            if known_head is not None and known_head.size == head.size and known_head.root != head.root:
                raise ConfigurationError(
                    f"{what}: it has another head of {log} at size {head.size} than the given one: find out which"
                    " history is right before you end a key"
                )
        until = merge_until(key_id, before.keys[key_id].until, until) or {}
        entry["until"] = {log: {"size": head.size, "root": head.root.hex()} for log, head in sorted(until.items())}

    _change(path, end)
    return until


def _change(path: Path, change: Callable[[dict[str, Any], Trust], None]) -> None:
    """Change a `trust.json`, under a lock and in one step."""
    what = f"trust {path}"
    with locked(path, "trust") as descriptor:
        status = os.fstat(descriptor)
        data = read_all(descriptor, TRUST_LIMIT, what)
        before = read_trust(data, status, what)
        document = json.loads(data)
        unchanged = json.loads(data)
        change(document, before)
        if document == unchanged:
            return
        after = _encode(document, what)
        read_trust(after, status, what)
        write(path, after, create=False, what="trust", mode=stat.S_IMODE(status.st_mode))


def _encode(document: Mapping[str, Any], what: str = "trust") -> bytes:
    try:
        data = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise ConfigurationError(f"{what}: a reason or a name has characters that are not Unicode text") from None
    if len(data) > TRUST_LIMIT:
        raise ConfigurationError(f"{what}: would be larger than {TRUST_LIMIT} bytes")
    return data


def _check_pin(there: Pin | None, pin: Pin | None, what: str) -> None:
    if there is None or there == pin:
        return
    if pin is None:
        found = "there is no archive.json yet"
    elif pin.id != there.id:
        found = f"this is the archive {pin.id}"
    else:
        found = f"the SHA-256 of this one's archive.json is {pin.sha256}, not {there.sha256}: find out who changed it"
    raise ConfigurationError(
        f"{what}: it is for the archive {there.id}, but {found}; set `trust` to another file, or correct the setting"
        " `archive`"
    )


def _pin(pin: Pin) -> dict[str, str]:
    return {"id": pin.id, "sha256": pin.sha256}


def _entry(key: PublicKey) -> dict[str, str | None]:
    entry: dict[str, str | None] = {
        "id": key.id,
        "algorithm": key.algorithm,
        "from": _time(key.from_),
        "to": _time(key.to),
    }
    if key.public is not None:
        entry["public"] = encode_base64(key.public)
    return entry


def _narrow(entry: dict[str, Any], key: PublicKey, what: str) -> bool:
    """Narrow the span of a key in a file to the key's present one. Return whether that changed it."""
    public = None if key.public is None else encode_base64(key.public)
    if entry["algorithm"] != key.algorithm or entry.get("public") != public:
        raise ConfigurationError(
            f"{what}: the key id {key.id!r} is another key here than in the keyring; an id names one key for ever,"
            " so find out which of the two is wrong"
        )
    begin = parse_moment(entry["from"], what, "from") or BEGINNING
    end = parse_moment(entry["to"], what, "to")
    later = key.from_ is not None and key.from_ > begin
    sooner = key.to is not None and (end is None or key.to < end)
    if later:
        entry["from"] = _time(key.from_)
    if sooner:
        entry["to"] = _time(key.to)
    return later or sooner


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else format_time(moment)


def _place(one: Accepted) -> tuple[object, ...]:
    """Return what an entry accepts, without who accepted it."""
    return one.finding, one.log, one.sequence, one.key, one.sha256
