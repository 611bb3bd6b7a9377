"""Reads an archive with the standard library alone, and accounts for every offset: a judge that shares nothing.

What it asserts is FORMAT.md's accounting: sequences without a hole but for slots that were passed over, ranges that
join, trees that follow, last records that are right, and every offset of a range exactly one of event, quarantined,
skipped, unreadable and lost. Signatures are the verifier's to judge.
"""

import base64
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

Ranges = list[tuple[int, int]]


def anything(_entry: object, _sequence: int) -> bool:
    """Return that an entry is valid where it stands: for tests that read what they wrote themselves."""
    return True


@dataclass(slots=True)
class Log:
    """What an archive holds of one log.

    Attributes:
        statements: the statements, in order; slots that were passed over have none.
        events: offset and bytes of each event, in order.
        quarantined: the lines of quarantined records, in order.
        skipped: offsets without a record, merged over all statements.
        lost: offsets that were lost, merged over all statements.
        unreadable: offsets that no client could decode, merged over all statements.
        passed_over: sequences of slots that hold no statement.
    """

    statements: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    quarantined: list[bytes] = field(default_factory=list)
    skipped: Ranges = field(default_factory=list)
    lost: Ranges = field(default_factory=list)
    unreadable: Ranges = field(default_factory=list)
    passed_over: list[int] = field(default_factory=list)

    @property
    def next_offset(self) -> int:
        """The first offset that is not accounted for."""
        return int(self.statements[-1]["next_offset"])

    @property
    def batches(self) -> list[dict[str, Any]]:
        """All batches, in order."""
        return [batch for statement in self.statements for batch in statement["batches"]]

    @property
    def quarantined_offsets(self) -> list[int]:
        """The offsets of quarantined records, in order."""
        return [json.loads(line)["offset"] for line in self.quarantined]

    @property
    def quarantined_values(self) -> list[bytes | None]:
        """The values of quarantined records, in order."""
        values = [json.loads(line)["value"] for line in self.quarantined]
        return [None if value is None else base64.b64decode(value) for value in values]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Return all objects of an archive in a folder by their keys."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".staging" not in path.parts
    }


def read_bucket(client: Any, bucket: str, prefix: str = "") -> dict[str, bytes]:
    """Return all objects of an archive in a bucket by their keys."""
    found = {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", []):
            found[item["Key"].removeprefix(prefix)] = client.get_object(Bucket=bucket, Key=item["Key"])["Body"].read()
    return found


def read_archive_records(archive: Path | Mapping[str, bytes]) -> dict[str, Log]:
    """Return what an archive holds of each log, by `<log>/<partition>`, and assert that it accounts for all of it."""
    objects = read_folder(archive) if isinstance(archive, Path) else archive
    manifests: dict[str, dict[int, bytes]] = defaultdict(dict)
    for key, data in objects.items():
        match = re.fullmatch(r"manifests/([^/]+/[0-9]+)/([0-9]{12})\.json", key)
        if match:
            manifests[match[1]][int(match[2])] = data
    return {name: _read_log(objects, numbered) for name, numbered in manifests.items()}


def _read_log(objects: Mapping[str, bytes], manifests: Mapping[int, bytes]) -> Log:
    log = Log()
    stack: list[tuple[int, bytes]] = []
    number = 0
    size = max(manifests) + 1
    passed = _passed_over(manifests)
    for sequence in range(size):
        if sequence in passed:
            # A slot may have been deleted since; what it held is known by its digest.
            digest = passed[sequence]
            assert sequence not in manifests or hashlib.sha256(manifests[sequence]).hexdigest() == digest
            log.passed_over.append(sequence)
            _append(stack, f"custody/passed-over/1\n{digest}\n".encode())
            continue
        line, signatures, rest = manifests[sequence].split(b"\n")
        assert rest == b""
        assert [one["algorithm"] for one in json.loads(signatures)["signatures"]] == ["HMAC-SHA256"]
        statement = json.loads(line)
        assert statement["sequence"] == sequence
        assert statement["tree"] == {
            "size": sequence,
            "root": _root(stack),
            "compact_range": [node.hex() for _, node in stack],
        }
        if log.statements:
            assert statement["first_offset"] == log.next_offset
            assert statement["log"] == log.statements[0]["log"]
        for batch in statement["batches"]:
            assert batch["number"] == number
            number += 1
        _read_statement(objects, statement, log)
        log.statements.append(statement)
        _append(stack, f"{statement['format']}\n{hashlib.sha256(line).hexdigest()}\n".encode())
    return log


def _passed_over(manifests: Mapping[int, bytes]) -> dict[int, str]:
    """Return the digests of slots that were passed over, looking back from the newest statement."""
    passed: dict[int, str] = {}
    sequence = max(manifests)
    while sequence >= 0:
        hashes = json.loads(manifests[sequence].split(b"\n")[0])["passed_over"]
        passed |= dict(zip(range(sequence - len(hashes), sequence), hashes, strict=True))
        sequence -= len(hashes) + 1
    return passed


def _append(stack: list[tuple[int, bytes]], entry: bytes) -> None:
    """Append an entry to the tree, whose perfect subtrees are the stack."""
    stack.append((1, hashlib.sha256(b"\x00" + entry).digest()))
    while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
        (size, right), (_, left) = stack.pop(), stack.pop()
        stack.append((2 * size, hashlib.sha256(b"\x01" + left + right).digest()))


def _root(stack: list[tuple[int, bytes]]) -> str:
    if not stack:
        return hashlib.sha256().hexdigest()
    node = stack[-1][1]
    for _, left in reversed(stack[:-1]):
        node = hashlib.sha256(b"\x01" + left + node).digest()
    return node.hex()


def _read_statement(objects: Mapping[str, bytes], statement: dict[str, Any], log: Log) -> None:
    skipped = [tuple(pair) for pair in statement["skipped"]]
    lost = [tuple(statement["lost"])] if statement["lost"] else []
    if lost:
        assert lost[0][0] == statement["first_offset"]
    quarantine = statement["quarantine"]
    aside = [tuple(pair) for pair in quarantine["offsets"]] if quarantine else []
    unreadable = [(one["from"], one["to"]) for one in statement["unreadable"]]
    no_events = set(chain.from_iterable(range(*pair) for pair in chain(skipped, aside, unreadable)))
    events = _read_segment(objects, statement, no_events)
    # Each offset of the range once, and in order.
    spans = sorted([*skipped, *lost, *aside, *unreadable, *_spans([offset for offset, _ in events])])
    position = statement["first_offset"]
    for start, stop in spans:
        assert (start, stop > start) == (position, True), f"offset {position} is not accounted for once"
        position = stop
    assert position == statement["next_offset"]
    if quarantine:
        lines = _inflate(_stored(objects, quarantine), quarantine["inflated"]).splitlines(keepends=True)
        assert all(line.endswith(b"\n") for line in lines)
        assert len(lines) == quarantine["records"]
        offsets = [json.loads(line)["offset"] for line in lines]
        assert offsets == [offset for pair in aside for offset in range(*pair)]
        for row in map(json.loads, lines):
            left_out = [name for name in ("key", "value", "headers") if (row["omitted"] or {}).get(name)]
            assert all(row[name] in (None, []) for name in left_out)
        log.quarantined.extend(lines)
    records = [offset for offset, _ in events] + [offset for pair in aside for offset in range(*pair)]
    _check_last_record(statement, max(records, default=None), log)
    log.events.extend(events)
    for ranges, more in ((log.skipped, skipped), (log.lost, lost), (log.unreadable, unreadable)):
        for start, stop in more:
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))


def _check_last_record(statement: dict[str, Any], newest: int | None, log: Log) -> None:
    """Assert that the last record is the newest one of the range, or repeated."""
    last = statement["last_record"]
    before = log.statements[-1]["last_record"] if log.statements else None
    if newest is not None:
        # Null where the broker gives no leader epoch.
        assert last is None or last["offset"] == newest
    else:
        assert last == (None if statement["lost"] else before)
    known = [one["last_record"]["leader_epoch"] for one in log.statements if one["last_record"]]
    assert last is None or last["leader_epoch"] >= max(known, default=0)


def _read_segment(
    objects: Mapping[str, bytes], statement: dict[str, Any], no_events: set[int]
) -> list[tuple[int, bytes]]:
    if statement["segment"] is None:
        assert statement["batches"] == []
        return []
    data = _stored(objects, statement["segment"])
    events: list[tuple[int, bytes]] = []
    place = 0
    for batch in statement["batches"]:
        assert batch["start"] == place
        place += batch["size"]
        payload = _inflate(data[batch["start"] : place], batch["inflated"])
        assert hashlib.sha256(payload).hexdigest() == batch["sha256"]
        assert payload.endswith(b"\n")
        lines = payload[:-1].split(b"\n")
        assert len(lines) == batch["events"]
        offsets: Sequence[int] = range(batch["first_offset"], batch["next_offset"])
        if len(offsets) != len(lines):
            offsets = [offset for offset in offsets if offset not in no_events]
        assert not events or events[-1][0] < batch["first_offset"]
        events.extend(zip(offsets, lines, strict=True))
        assert events[-1][0] == batch["next_offset"] - 1
    assert place == len(data)
    return events


def _stored(objects: Mapping[str, bytes], reference: dict[str, Any]) -> bytes:
    data = objects[reference["key"]]
    assert len(data) == reference["size"]
    assert hashlib.sha256(data).hexdigest() == reference["sha256"]
    assert reference["key"].endswith(f"-{reference['sha256'][:16]}.jsonl.gz")
    return data


def _inflate(member: bytes, stated: int) -> bytes:
    machine = zlib.decompressobj(wbits=31)
    payload = machine.decompress(member)
    assert machine.eof
    assert machine.unused_data == b""
    assert len(payload) == stated
    return payload


def _spans(offsets: list[int]) -> Ranges:
    spans: Ranges = []
    for offset in offsets:
        if spans and spans[-1][1] == offset:
            spans[-1] = (spans[-1][0], offset + 1)
        else:
            spans.append((offset, offset + 1))
    return spans
