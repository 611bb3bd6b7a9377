"""At ten times the age, with the same new data, the operator's and the auditor's commands take hardly more requests."""

import pytest

from tests.helpers.aged import AgedStore, check_flat, use_aged
from tests.helpers.commands import Command, custody

__all__ = ["custody"]

Aged = tuple[AgedStore, AgedStore]


@pytest.fixture(autouse=True)
def _opened(custody: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open archives that are made here, and neither Kafka nor AWS."""
    del custody
    use_aged(monkeypatch)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CUSTODY_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("status",), 1),
        (("show", "audit/0"), 0),
        (("show", "audits/0"), 0),
        (("checkpoint",), 0),
        (("checkpoint", "audits/0"), 0),
    ],
)
def test_a_command(
    custody: Command, aged: Aged, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], code: int
) -> None:
    """It reads what is new, and finds where that begins without going through what is old."""

    def run(store: AgedStore) -> None:
        monkeypatch.setenv("CUSTODY_ARCHIVE", store.url)
        monkeypatch.setenv("CUSTODY_KEYS", store.keys)
        assert custody(*command).code == code

    check_flat(run, *aged)
