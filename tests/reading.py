"""Reads an archive with the standard library alone, and accounts for every offset: a judge that shares nothing.

What it asserts is FORMAT.md's accounting: sequences without a hole, ranges that join, trees that follow, and every
offset of a range exactly one of event, quarantined, skipped and lost. Signatures are `custody.verify`'s to judge.
"""

import base64
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

Ranges = list[tuple[int, int]]


@dataclass(slots=True)
class Log:
    """What an archive holds of one log.

    Attributes:
        statements: the statements, in order.
        events: offset and bytes of each event, in order.
        quarantined: the lines of quarantined records, in order.
        skipped: offsets without a record, merged over all statements.
        lost: offsets that were lost, merged over all statements.
    """

    statements: list[dict[str, Any]] = field(default_factory=list)
    events: list[tuple[int, bytes]] = field(default_factory=list)
    quarantined: list[bytes] = field(default_factory=list)
    skipped: Ranges = field(default_factory=list)
    lost: Ranges = field(default_factory=list)

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
    return {
        name: _read_log(objects, [numbered[at] for at in range(len(numbered))]) for name, numbered in manifests.items()
    }


def _read_log(objects: Mapping[str, bytes], manifests: list[bytes]) -> Log:
    log = Log()
    stack: list[tuple[int, bytes]] = []
    number = 0
    for sequence, data in enumerate(manifests):
        line, signatures, rest = data.split(b"\n")
        assert rest == b""
        assert json.loads(signatures)["signatures"]
        statement = json.loads(line)
        assert statement["sequence"] == sequence
        assert statement["tree"] == {"size": sequence, "root": _root(stack), "edge": [node.hex() for _, node in stack]}
        if log.statements:
            assert statement["first_offset"] == log.next_offset
            assert statement["log"] == log.statements[0]["log"]
        for batch in statement["batches"]:
            assert batch["number"] == number
            number += 1
        _read_statement(objects, statement, log)
        log.statements.append(statement)
        stack.append((1, hashlib.sha256(b"\x00" + line).digest()))
        while len(stack) > 1 and stack[-1][0] == stack[-2][0]:
            (size, right), (_, left) = stack.pop(), stack.pop()
            stack.append((2 * size, hashlib.sha256(b"\x01" + left + right).digest()))
    return log


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
    no_events = set(chain.from_iterable(range(*pair) for pair in chain(skipped, aside)))
    events = _read_segment(objects, statement, no_events)
    # Each offset of the range once, and in order.
    spans = sorted([*skipped, *lost, *aside, *_spans([offset for offset, _ in events])])
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
        log.quarantined.extend(lines)
    log.events.extend(events)
    for ranges, more in ((log.skipped, skipped), (log.lost, lost)):
        for start, stop in more:
            if ranges and ranges[-1][1] == start:
                ranges[-1] = (ranges[-1][0], stop)
            else:
                ranges.append((start, stop))


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
        offsets = range(batch["first_offset"], batch["next_offset"])
        if len(offsets) != len(lines):
            offsets = [offset for offset in offsets if offset not in no_events]  # type: ignore[assignment]
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
