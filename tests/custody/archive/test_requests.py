"""Evidence, and what finds a statement by an offset, take few requests, however long the log is."""

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from custody.archive.evidence import check_evidence
from custody.archive.guesses import nightly_audits
from custody.archive.prove import make_evidence
from custody.archive.search import _accounting
from custody.archive.show import show
from custody.errors import ObjectMissing
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.format.times import format_time
from custody.keys.trust import open_trust
from custody.store.protocol import Store
from tests.helpers.aged import EACH, FIRST_OFFSET, AgedStore

LOG = Log("audit", 0)
SEVEN_YEARS = 7 * 365 * 24 * 60
OTHERS = 7
"""Requests for evidence beside a manifest for each node of the proof: the archive's file, two for the newest audit, two
for the newest checkpoint, the segment, and the log's first manifest, from which the search for the event begins."""


def test_evidence(aged: tuple[AgedStore, AgedStore]) -> None:
    """Of any event of a log, evidence takes no object twice, and one manifest a level of the tree beside seven objects.

    That is 29 for seven years of one-minute statements.
    """
    assert OTHERS + SEVEN_YEARS.bit_length() < 30
    for store in aged:
        size = store.spec.statements
        trust = open_trust([store.keys])
        now = store.spec.begin + timedelta(minutes=size)
        powers = [1 << level for level in range(size.bit_length())]
        for sequence in sorted({0, *powers, *(each - 1 for each in powers), size // 3, size - 61, size - 1}):
            store.requests.clear()
            offset = FIRST_OFFSET + EACH * sequence
            made = make_evidence(store, LOG, offset, trust, now, whole_batch=True)
            assert made.others == EACH - 1
            assert check_evidence(made.data, trust, now).proved
            assert store.requests.total <= OTHERS + size.bit_length()
            assert store.requests.by_kind["LIST"] == 2


def test_the_newest_event(aged: tuple[AgedStore, AgedStore]) -> None:
    """Evidence of a new event takes as many requests of an old log as of a young one."""
    counts = []
    for store in aged:
        store.requests.clear()
        offset = FIRST_OFFSET + EACH * (store.spec.statements - 1)
        now = store.spec.begin + timedelta(minutes=store.spec.statements)
        make_evidence(store, LOG, offset, open_trust([store.keys]), now, whole_batch=True)
        counts.append(store.requests.total)
    assert counts[0] == counts[1] <= 9


def test_a_record(aged: tuple[AgedStore, AgedStore]) -> None:
    """`custody show LOG@OFFSET` finds a record with a few reads."""
    for store in aged:
        for sequence in (0, store.spec.statements // 3, store.spec.statements - 1):
            store.requests.clear()
            show(store, f"{LOG}@{FIRST_OFFSET + EACH * sequence}", open_trust([store.keys]))
            assert store.requests.total <= 14


def test_how_many_audits_there_may_be(aged: tuple[AgedStore, AgedStore]) -> None:
    """It is the number of nights, less some hundred, and never below 0."""
    begin = aged[0].spec.begin
    assert nightly_audits(format_time(begin), begin + timedelta(days=7 * 365)) == 7 * 365 - 500
    assert nightly_audits(format_time(begin), begin + timedelta(days=3)) == 0
    assert nightly_audits(format_time(begin), begin - timedelta(days=3)) == 0


@dataclass
class Entries:
    """Manifests of a log of seven years, made when they are read, and counted."""

    offset: Callable[[int], int]
    """Returns the first offset of a statement."""
    reads: int = 0

    def entry(self, sequence: int) -> Manifest:
        first, end = self.offset(sequence), self.offset(sequence + 1)
        statement = SimpleNamespace(first_offset=first, next_offset=end, passed_over=[])
        return cast("Manifest", SimpleNamespace(statement=statement))


DAY = 24 * 60
RATES: dict[str, Callable[[int], int]] = {
    "steady": lambda sequence: 15_000 * sequence,
    "by day and not by night": lambda sequence: sequence // DAY * 12 * 60 * 1000 + min(sequence % DAY, DAY // 2) * 1000,
    "more each year": lambda sequence: sequence * sequence // 100,
    "a backlog, then nothing": lambda sequence: min(sequence, 1000) * 1_000_000,
    "nothing, then a backlog": lambda sequence: max(sequence - SEVEN_YEARS + 1000, 0) * 1_000_000,
    "each more than all before": lambda sequence: 2 ** min(sequence, 500) - 1,
}


@pytest.mark.parametrize("rate", RATES)
def test_an_offset(monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    """An offset is found with a few reads at a steady rate, and with O(log n) at any."""
    entries = Entries(RATES[rate])

    def read(_store: object, _log: object, sequence: int, *_: object) -> Any:
        entries.reads += 1
        if not 0 <= sequence < SEVEN_YEARS:
            raise ObjectMissing("none")
        return sequence, entries.entry(sequence)

    monkeypatch.setattr("custody.archive.search.at_or_behind", read)
    last = SEVEN_YEARS - 1
    end = last, entries.entry(last)
    whole = entries.offset(SEVEN_YEARS)
    most = 0
    for share in range(100):
        offset = whole * share // 100
        entries.reads = 0
        accounting = _accounting(cast("Store", None), LOG, offset, end, lambda *_: True)
        assert accounting is not None
        assert accounting[0] == bisect_right(range(SEVEN_YEARS), offset, key=entries.offset) - 1
        most = max(most, entries.reads)
    assert most <= (2 if rate == "steady" else 3 * SEVEN_YEARS.bit_length())
    assert _accounting(cast("Store", None), LOG, whole, end, lambda *_: True) is None
