"""An audit of a log whose topic was created again."""

from datetime import UTC, datetime
from pathlib import Path

from custody.archive.writer import Entry
from custody.format.manifest import LogId, PreviousEpoch
from tasks.settings import AuditSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.sample import Growing


def test_a_second_epoch_is_no_rollback(tmp_path: Path) -> None:
    """Pieces of a later epoch, which are read without the earlier one, raise no alarm about that, night after night."""
    first, second = Growing(tmp_path), Growing(tmp_path)
    first.append(4)
    head = first._open().tip.head
    second._log_id = LogId("cluster", "audit.grows", "another-topic-id", 0, 2)
    second.log = "audit.grows@2/0"
    previous = PreviousEpoch(1, head.size, head.root.hex())
    second._open().append(Entry(first_offset=0, next_offset=0, previous_epoch=previous))
    second._statements = 1
    second.append(3)
    given = Settings(
        archive=str(first.folder), keys=f"file:{first.keyring}", audit=AuditSettings(piece_statements=3, tables=False)
    )
    nights = [audit(given, datetime.now(UTC)) for _ in range(2)] + [audit(given, logs=("audit.grows@2/0",))]
    assert {problem["finding"] for night in nights for problem in night.findings} == {"new-epoch"}
    assert {night.verdict for night in nights} == {"notices"}
