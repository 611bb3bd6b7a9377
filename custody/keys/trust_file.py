"""Writes `trust.json`: what others need to verify an archive (FORMAT.md, Trust).

Rules:
1. A new file has no secret: public parts of Ed25519 keys, ids of all other keys, the archive's pin.
2. An existing file is only extended. Its keys, heads, witnesses and accepted findings stay. A key can be added, or end
   sooner; a pin can be added if there is none. Anything that contradicts the file is an error.
3. A change is made under a lock, checked as a verifier reads it, and written in one step. The file's mode stays.
"""

import json
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from custody.errors import ConfigurationError
from custody.findings import Accepted
from custody.format.archive_file import Pin
from custody.keys.files import locked, read_all, write
from custody.keys.key import PublicKey, encode_key
from custody.keys.trust import TRUST_LIMIT, Trust, load_trust, merge_until, read_trust
from custody.tlog.head import Head

MODE = 0o644
"""The mode of a new file: it has no secret, and is meant for others."""


def encode(pin: Pin | None, keys: Sequence[PublicKey]) -> bytes:
    """Return the bytes of a new `trust.json`."""
    document = {
        "format": "custody/trust/1",
        "archive": None if pin is None else asdict(pin),
        "keys": [encode_key(key) for key in keys],
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


def publish(path: Path, pin: Pin, keys: Sequence[PublicKey]) -> str:
    """Write a `trust.json`, or extend the existing one.

    Args:
        path: the file.
        pin: of the archive.
        keys: the writer's keys.

    Returns:
        What was done to the file, for people.

    Raises:
        ConfigurationError: the file cannot be written, or contradicts the pin or a key.
    """
    if not path.exists():
        write(path, encode(pin, keys), create=True, subject="trust", mode=MODE)
        return "new"
    added: list[str] = []

    def extend(document: dict[str, Any], before: Trust) -> None:
        _check_pin(before.archive, pin, f"trust {path}")
        if before.archive is None:
            document["archive"] = asdict(pin)
            added.append("the archive's pin")
        entries = document.setdefault("keys", [])
        known = {entry["id"]: entry for entry in entries}
        for key in keys:
            if key.key_id not in known:
                entries.append(encode_key(key))
                added.append(f"key {key.key_id}")
            elif _narrow(known[key.key_id], encode_key(key), f"trust {path}"):
                added.append(f"the end of key {key.key_id}")

    _change(path, extend)
    return f"extended by {', '.join(added)}" if added else "nothing to add"


def accept(path: Path, entries: Sequence[Accepted]) -> int:
    """Add accepted findings to a `trust.json` (`custody accept`).

    Args:
        path: the file.
        entries: the entries. Those that the file has already, by any person, are not added again.

    Returns:
        How many were added.

    Raises:
        ConfigurationError: the file cannot be used or written, or an entry is malformed.
    """
    added: list[Accepted] = []

    def add(document: dict[str, Any], before: Trust) -> None:
        known = {_accepts(entry) for entry in before.accepted}
        added.extend(entry for entry in entries if _accepts(entry) not in known)
        document.setdefault("accepted", []).extend(map(msgspec.to_builtins, added))

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
    subject = f"trust {path}"
    until: Mapping[str, Head] = {log: head for log, head in heads.items() if head.size}

    def end(document: dict[str, Any], before: Trust) -> None:
        nonlocal until
        entry = next((entry for entry in document.get("keys", []) if entry["id"] == key_id), None)
        if entry is None:
            known = ", ".join(str(entry["id"]) for entry in document.get("keys", []))
            raise ConfigurationError(
                f"{subject}: it has no key {key_id!r}; it has {known or 'none'}. To add the writer's keys, run"
                " `custody keys export`"
            )
        if key_id not in before.keys:
            raise ConfigurationError(
                f"{subject}: the key {key_id!r} is {entry['algorithm']}, which signs nothing, so it cannot be ended."
                " With its secret one can check guesses about events: run `custody keys rotate`"
            )
        for log, head in until.items():
            known_head = before.heads.get(log)
            if known_head is not None and known_head.size == head.size and known_head.root != head.root:
                raise ConfigurationError(
                    f"{subject}: it has another head of {log} at size {head.size} than the given one: find out which"
                    " history is right before you end a key"
                )
        until = merge_until(key_id, before.keys[key_id].until, until) or {}
        entry["until"] = {log: {"size": head.size, "root": head.root.hex()} for log, head in sorted(until.items())}

    _change(path, end)
    return until


def _change(path: Path, change: Callable[[dict[str, Any], Trust], None]) -> None:
    """Change a `trust.json`, under a lock and in one step."""
    subject = f"trust {path}"
    with locked(path, "trust") as descriptor:
        data, status = read_all(descriptor, TRUST_LIMIT, subject)
        before = read_trust(data, status, subject)
        document = json.loads(data)
        unchanged = json.loads(data)
        change(document, before)
        if document == unchanged:
            return
        after = _encode(document, subject)
        read_trust(after, status, subject)
        write(path, after, create=False, subject="trust", mode=stat.S_IMODE(status.st_mode))


def _encode(document: Mapping[str, Any], subject: str = "trust") -> bytes:
    try:
        data = json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        raise ConfigurationError(f"{subject}: a reason or a name has characters that are not Unicode text") from None
    if len(data) > TRUST_LIMIT:
        raise ConfigurationError(f"{subject}: would be larger than {TRUST_LIMIT} bytes")
    return data


def _check_pin(pinned: Pin | None, pin: Pin | None, subject: str) -> None:
    if pinned is None or pinned == pin:
        return
    if pin is None:
        reason = "there is no archive.json yet"
    elif pin.id != pinned.id:
        reason = f"this is the archive {pin.id}"
    else:
        reason = f"the SHA-256 of this one's archive.json is {pin.sha256}, not {pinned.sha256}: find out who changed it"
    raise ConfigurationError(
        f"{subject}: it is for the archive {pinned.id}, but {reason}; set `trust` to another file, or correct the"
        " setting `archive`"
    )


def _narrow(entry: dict[str, Any], key: Mapping[str, str | None], subject: str) -> bool:
    """Narrow the span of a key in a file to the key's present one. Return whether that changed it."""
    if (entry["algorithm"], entry.get("public")) != (key["algorithm"], key.get("public")):
        raise ConfigurationError(
            f"{subject}: the key id {entry['id']!r} is another key here than in the keyring; an id names one key for"
            " ever, so find out which of the two is wrong"
        )
    # Times in our form sort as text.
    begin, end = key["from"], key["to"]
    later = begin is not None and (entry["from"] is None or begin > entry["from"])
    sooner = end is not None and (entry["to"] is None or end < entry["to"])
    entry["from"] = begin if later else entry["from"]
    entry["to"] = end if sooner else entry["to"]
    return later or sooner


def _accepts(entry: Accepted) -> tuple[object, ...]:
    """Return what an entry accepts, without who accepted it."""
    return entry.finding, entry.log, entry.sequence, entry.key, entry.sha256
