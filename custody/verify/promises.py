"""What an archive, and the verifier's trust, promise about each log."""

from dataclasses import dataclass
from datetime import timedelta

from custody.format.archive_file import ArchiveFile
from custody.keys.trust import Trust


@dataclass(frozen=True, slots=True)
class Promises:
    """What `archive.json` and the verifier's trust promise about a log.

    Attributes:
        heartbeat: an idle log writes a statement this often.
        checkpoint: a log that grew gets a checkpoint this often.
        retention: how long evidence must be kept.
        kept: how long it may be kept at most, None if there is no limit.
        live: whether the archive is being written, so that silence is a finding.
    """

    heartbeat: timedelta | None = None
    checkpoint: timedelta | None = None
    retention: timedelta | None = None
    kept: timedelta | None = None
    live: bool = False


def promises_of(file: ArchiveFile | None, trust: Trust, *, live: bool) -> Promises:
    """Return what a valid `archive.json` and our trust promise. The longer retention of both applies."""
    found = file.statement if file else None
    days = max(found.retention_days if found else 0, trust.retention_days or 0)
    return Promises(
        heartbeat=timedelta(seconds=found.heartbeat) if found else None,
        checkpoint=timedelta(seconds=found.checkpoint) if found else None,
        retention=timedelta(days=days) if days else None,
        kept=timedelta(days=days) if trust.retention_days else None,
        live=live,
    )
