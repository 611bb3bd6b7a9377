"""Rule 6 across the epochs of a partition: each names the epoch before it, and has another topic. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from custody.findings import loss_digest
from custody.format import layout
from custody.format.manifest import LogId, Statement
from custody.tlog.log import Fault


@dataclass(frozen=True, slots=True)
class Epoch:
    """An earlier epoch of a log's partition, as it was verified."""

    log: layout.Log
    identity: LogId | None
    size: int
    root: bytes | None


def epoch_faults(statement: Statement, log: layout.Log, earlier: Sequence[Epoch]) -> Iterator[Fault]:
    """Yield the faults of a statement's `previous_epoch`, and for a first statement those of the epoch itself.

    Args:
        statement: the statement.
        log: its log.
        earlier: the partition's earlier epochs that have statements, the newest first.
    """
    previous = statement.previous_epoch
    if statement.sequence or not earlier:
        if previous is None:
            return
        if statement.sequence or previous.epoch >= log.epoch:
            yield Fault("statement", "previous_epoch is set where FORMAT.md wants null")
        else:
            before = layout.Log(log.topic, log.partition, previous.epoch)
            yield _rolled_back(log, before, 0, previous.size, previous.root)
        return
    newest = earlier[0]
    if log.epoch != newest.log.epoch + 1:
        message = f"epoch {log.epoch} follows epoch {newest.log.epoch}: epochs must be consecutive"
        yield Fault("statement", message)
    yield from _same_topic(statement, log, earlier)
    if previous is None or previous.epoch != newest.log.epoch:
        where = {
            "expected": f"previous epoch {newest.log.epoch}",
            "found": f"previous epoch {previous.epoch}" if previous else "null",
        }
        yield Fault("identity", "the first statement of an epoch does not name the epoch before it", where)
        return
    if newest.size < previous.size:
        yield _rolled_back(log, newest.log, newest.size, previous.size, previous.root)
    elif newest.size > previous.size or (newest.root is not None and newest.root.hex() != previous.root):
        message = f"epoch {newest.log.epoch} is not the one that this epoch says it continues"
        where = {
            "expected": f"size {previous.size}, root {previous.root}",
            "found": f"size {newest.size}, root {newest.root.hex() if newest.root else 'unknown'}",
        }
        yield Fault("head-fork", message, where)


def _same_topic(statement: Statement, log: layout.Log, earlier: Sequence[Epoch]) -> Iterator[Fault]:
    """Yield a fault for the newest earlier epoch of the same topic and cluster, if there is one."""
    found = statement.log
    if found.topic_id is None:
        # Without topic ids, a broker cannot distinguish a topic from an earlier one of the same name.
        return
    for epoch in earlier:
        known = epoch.identity
        if known is not None and (known.cluster, known.topic_id) == (found.cluster, found.topic_id):
            message = (
                f"epoch {log.epoch} is of the same topic as epoch {epoch.log.epoch}: its records were archived a second"
                " time"
            )
            where = {
                "expected": f"another topic id or cluster than {known.topic_id} of {known.cluster}",
                "found": f"{found.topic_id} of {found.cluster}",
            }
            yield Fault("head-fork", message, where)
            return


def _rolled_back(log: layout.Log, before: layout.Log, size: int, known: int, root: str) -> Fault:
    """Return the fault that an earlier epoch is shorter than a later epoch signed."""
    message = f"the log was rolled back: it had more statements when epoch {log.epoch} began"
    expected, found = f"size {known}, root {root}", f"size {size}"
    where: dict[str, Any] = {"log": str(before), "sequence": size, "through": known - 1}
    where |= {"expected": expected, "found": found, "sha256": loss_digest(before, expected, found), "row": "rollback"}
    return Fault("head-rollback", message, where)
