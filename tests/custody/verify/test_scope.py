"""A part of an archive, verified as the nightly audit does it: spans of logs, with and without a listing."""

from pathlib import Path
from typing import Any

import pytest

from custody.format.layout import Log, parse_log_text
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey
from custody.store.open import open_store
from custody.tlog.head import Head
from custody.verify.report import Report
from custody.verify.run import verify
from custody.verify.scope import Scope, Span
from tests.helpers.archives import KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, Builder, event, good, member

TRUST = Trust(
    keys={
        KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
        NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
    }
)


def log(builder: Builder) -> Log:
    found = parse_log_text(builder.name)
    assert found
    return found


def judge(builder: Builder, scope: Scope, trust: Trust = TRUST, **more: Any) -> Report:
    return verify(open_store(str(builder.root)), trust, now=builder.clock, workers=0, scope=scope, **more)


def names(report: Report) -> list[str]:
    return [one.finding for one in report.findings]


@pytest.fixture
def archive(tmp_path: Path) -> Builder:
    return good(tmp_path / "archive")


def plant(builder: Builder, offset: int) -> str:
    """Put a segment of one event that no statement names."""
    packed = member(event(offset, request_id="planted") + b"\n")
    key = builder.records_key("events", offset, offset, packed)
    builder.put(key, packed)
    return key


@pytest.mark.parametrize("listing", [True, False])
@pytest.mark.parametrize("contents", [True, False], ids=["whole", "chain alone"])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 6), (1, 2, 3, 4, 5, 6, 7, 8)])
def test_spans_add_up(archive: Builder, cuts: tuple[int, ...], *, contents: bool, listing: bool) -> None:
    """Spans that cover a log account for all of it, wherever they are cut."""
    ends = [*cuts, None]
    spans = [Span(first, end) for first, end in zip([0, *cuts], ends, strict=True)]
    report = judge(archive, Scope({log(archive): spans}, contents=contents, listing=listing))
    assert names(report) == []
    (found,) = report.logs
    assert (found.statements, found.quarantined, found.skipped, found.size) == (9, 7, 8, 9)
    assert found.events == (115 if contents else 0)
    assert found.root == archive.head[1].hex()


@pytest.mark.parametrize("listing", [True, False])
def test_a_span_reads_its_own_statements(archive: Builder, *, listing: bool) -> None:
    """Faults outside a span are not reported. One exception: the next statement's tree, which covers the span."""
    archive.segment(1).unlink()
    archive.segment(8).unlink()
    assert names(judge(archive, Scope({log(archive): [Span(2, 8)]}, listing=listing))) == []
    assert names(judge(archive, Scope({log(archive): [Span(1, 8)]}, listing=listing))) == ["segment-missing"]
    assert names(judge(archive, Scope({log(archive): [Span(2, 9)]}, listing=listing))) == ["segment-missing"]
    assert names(judge(archive, Scope({log(archive): [Span(2)]}, listing=listing))) == ["segment-missing"]


@pytest.mark.parametrize("listing", [True, False])
def test_the_statement_behind_a_span(archive: Builder, *, listing: bool) -> None:
    """A changed and re-signed statement is reported by the tree of the next statement, outside the span."""
    archive.resign(4, lambda statement: statement.update(writer="another"))
    assert names(judge(archive, Scope({log(archive): [Span(0, 5)]}, listing=listing))) == ["tree"]
    assert names(judge(archive, Scope({log(archive): [Span(0, 4)]}, listing=listing))) == []


def test_a_span_beyond_the_end(archive: Builder) -> None:
    """Missing statements inside a span are reported."""
    report = judge(archive, Scope({log(archive): [Span(3, 12)]}, listing=False))
    assert [(one.finding, one.sequence, one.through) for one in report.findings] == [("sequence-gap", 9, 11)]


def test_unnamed_objects_of_other_logs(archive: Builder) -> None:
    """Unnamed objects are reported for the logs in scope, and for logs without statements."""
    other = Builder(archive.root, partition=1)
    other.append(5)
    planted = [plant(archive, 103), plant(other, 103)]
    nobody = plant(Builder(archive.root, partition=2), 103)
    found = judge(archive, Scope({log(archive): [Span()]})).findings
    assert sorted((one.finding, one.key) for one in found) == sorted([("unlisted", planted[0]), ("unlisted", nobody)])
    whole = judge(archive, Scope()).findings
    assert {one.key for one in whole} == {*planted, nobody}


def test_memories_beyond_a_span(archive: Builder) -> None:
    """A known head is required only of a span that reaches the end of its log."""
    size, root = archive.head
    trust = Trust(keys=TRUST.keys, heads={archive.name: Head(size, root)})
    archive.path(size - 1).unlink()
    assert names(judge(archive, Scope({log(archive): [Span(0, 5)]}, listing=False), trust)) == []
    assert names(judge(archive, Scope({log(archive): [Span(5)]}, listing=False), trust)) == ["head-rollback"]
