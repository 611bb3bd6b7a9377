"""The simulation of docs/scale.md takes what was measured, and any scale. tests/test_reference.py compares the page."""

import pytest

from tests.benchmarks import simulation
from tests.benchmarks.cost import write
from tests.benchmarks.simulation import MANIFEST_BATCH_BYTES, MANIFEST_BYTES, MEASURED, requests_for_the_end


def test_manifests_have_the_sizes_that_are_reckoned_with() -> None:
    """The writer's own manifests, of a batch and of twenty, are within 5 % of the constants."""
    for batches, made in zip((1, 20), write((1_000, 20_000)), strict=True):
        assert made.manifest == pytest.approx(MANIFEST_BYTES + batches * MANIFEST_BATCH_BYTES, rel=0.05)


def test_a_figure_that_is_missing_is_named() -> None:
    """A page of figures that says something in other words is an error, and never a zero."""
    page = simulation.FIGURES.read_text()
    assert set(simulation.measured(page)) == set(MEASURED)
    with pytest.raises(SystemExit, match=r"Query.*bytes of tables for an event"):
        simulation.measured(page.replace("tables take 39 bytes", "tables have 39 bytes"))


def test_the_end_is_found_by_custodys_own_search() -> None:
    """It needs as many requests as there are doublings, and few where something is known."""
    assert requests_for_the_end(10_000_000, 10_000_000) <= 3
    assert requests_for_the_end(10_000_000) - requests_for_the_end(10_000) == pytest.approx(20, abs=2)


def test_a_larger_scale_costs_more(capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints all tables for any scale; ten times the events are about ten times the bytes and cores."""
    simulation.main(["--events", "1000", "--partitions", "4"])
    printed = capsys.readouterr().out
    assert [line[3:] for line in printed.splitlines() if line.startswith("## ")] == list(simulation.PARTS)
    large = simulation.default()
    small = simulation.Scale(100_000, 1_000, large.figures, large.prices)
    assert large.segments_day == pytest.approx(10 * small.segments_day)
    assert large.audit_seconds()["new events"] == pytest.approx(10 * small.audit_seconds()["new events"])
    assert large.total() > 5 * small.total()
    # The same number of statements, and so of requests.
    assert large.requests()["puts"] == pytest.approx(small.requests()["puts"], rel=0.01)
