"""What a log lost, with the names and digests of `custody verify`, so that one acceptance also ends a witness's alarm.

A loss is identified by two heads: the known one and the present one.
"""

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from custody.archive.slots import sequence_of
from custody.errors import FormatError, StoreError
from custody.findings import loss_digest
from custody.format import layout
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.tlog.head import Head
from custody.tlog.proofs import Proofs

_NAMES = frozenset({"head-rollback", "head-fork", "checkpoint"})


@dataclass(frozen=True, slots=True)
class Loss:
    """A finding that `trust.json` can accept: by its log and sequence, or by its key.

    Attributes:
        finding: its name in `custody verify`.
        sha256: its exact digest.
        log: `<log>/<partition>`.
        sequence: of its statement.
        key: of its object.
    """

    finding: str
    sha256: str
    log: str | None = None
    sequence: int | None = None
    key: str | None = None

    @property
    def command(self) -> str:
        """The command that accepts exactly this loss."""
        where = f"--key {self.key}" if self.key is not None else f"--log {self.log} --sequence {self.sequence}"
        return (
            f"custody accept --finding {self.finding} {where} --sha256 {self.sha256} --reason WHY --by NAME"
            " --trust trust.json"
        )

    def is_accepted(self, trust: Trust) -> bool:
        """Return whether it was accepted. Its digest covers the log and both heads, or the stored bytes."""
        names = {self.finding} if self.log is None else names_of(self.log)
        return any(
            accepted.finding in names
            and accepted.sha256 == self.sha256
            and (self.log is not None or accepted.key == self.key)
            for accepted in trust.accepted
        )


def names_of(log: str) -> Collection[str]:
    """Return the names of the losses of a log in `custody verify`: for the log of audits, all are `audit`."""
    return {"audit", "checkpoint"} if log == str(layout.AUDIT_LOG) else _NAMES


def rollback(log: Log, known: Head, present: Head) -> Loss:
    """Return the loss of a log that ends before a known head."""
    name = "audit" if log == layout.AUDIT_LOG else "head-rollback"
    return Loss(name, _digest(str(log), known, present), str(log), present.size)


def fork(log: Log, known: Head, present: Head) -> Loss:
    """Return the loss of a log that contradicts a known head."""
    name = "audit" if log == layout.AUDIT_LOG else "head-fork"
    return Loss(name, _digest(str(log), known, present), str(log), known.size - 1)


def wrong_checkpoint(log: Log, signed: Head, present: Head) -> Loss:
    """Return the loss for a checkpoint in the archive whose root is not that of the statements it covers."""
    name = "audit" if log == layout.AUDIT_LOG else "checkpoint"
    key = layout.checkpoint_key(log, signed.size)
    return Loss(name, _digest(str(log), signed, present), str(log), signed.size - 1, key)


def is_continued(log: Log, known: Collection[Head], proofs: Proofs, trust: Trust) -> bool:
    """Return whether a rollback of the log was accepted, and the log continues from the head at that time.

    A log that is being written grows after the acceptance.
    """
    name = str(log)
    for accepted in trust.accepted:
        size = accepted.sequence if accepted.key is None else sequence_of(accepted.key)
        longer = [head for head in known if size is not None and head.size > size]
        if accepted.finding not in names_of(name) or accepted.log not in {None, name} or size is None or not longer:
            continue
        with suppress(FormatError, StoreError):
            present = Head(size, proofs.root(size))
            if accepted.sha256 in {_digest(name, head, present) for head in longer}:
                return True
    return False


def _digest(name: str, known: Head, present: Head) -> str:
    """Return the same digest as `custody.tlog.log` for this loss. A test compares the two."""
    return loss_digest(name, *(f"size {head.size}, root {head.root.hex()}" for head in (known, present)))
