"""Warnings come from several threads: each is kept, and logged, once."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from custody.format.layout import Log
from custody.query import warned
from custody.query.connect import open_archive
from custody.query.warned import Warnings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Growing

LOG = Log("audit.grows", 0)


def test_what_is_added_while_others_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning that a thread adds while `publish` sorts the others is logged, then or by the next call."""
    warnings = Warnings()
    warnings.add("ignored", LOG, "first")
    real = warned._rank
    with ThreadPoolExecutor(1) as threads:
        added: list[Future[None]] = []

        def rank(row: warned.Row) -> int:
            if not added:
                added.append(threads.submit(warnings.add, "damaged", LOG, "second"))
                added[0].result(10)
            return real(row)

        monkeypatch.setattr(warned, "_rank", rank)
        with caplog.at_level(logging.WARNING):
            warnings.publish()
            warnings.publish()
    assert sorted(caplog.messages) == ["damaged: audit.grows/0: second", "ignored: audit.grows/0: first"]


def test_scans_of_warnings_do_not_share_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan of as many warnings as before leaves the earlier scan's file as it was."""
    growing = Growing(tmp_path)
    growing.append(2)
    clear_settings(monkeypatch)
    connection, reading = open_archive(str(growing.folder))
    with closing(connection):
        ((first, _),) = reading._of_audits("warnings", None)
        before = Path(str(first.path)).read_bytes()
        row = reading.warnings.rows[0]
        reading.warnings.set_unverified([(LOG, row[2] + " more")] * len(reading.warnings.rows))
        ((second, _),) = reading._of_audits("warnings", None)
        assert first.path != second.path
        assert Path(str(first.path)).read_bytes() == before
