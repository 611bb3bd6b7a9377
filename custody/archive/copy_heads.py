"""Finds the heads of an archive that are signed: what a copy of it must reach."""

from collections.abc import Iterator

from custody.archive import reader
from custody.archive.forms import form_of
from custody.archive.trusted import Judge, find_signed_end
from custody.errors import CustodyError, StoreError
from custody.format import layout
from custody.keys.trust import Trust
from custody.store.ahead import call_ahead
from custody.store.protocol import Store
from custody.tlog.head import KnownHead


def signed_heads(store: Store, archive: str, trust: Trust) -> Iterator[tuple[str, KnownHead | None]]:
    """Yield the newest heads of each log that trusted keys signed, with the log; None for a log that has none.

    They are of checkpoints and, with the keys for it, of statements and audits. Take them before the archive is copied,
    and the copy must have them. They can only raise alarms: `custody.verify` checks signatures itself.

    Args:
        store: the archive.
        archive: its id.
        trust: keys, from outside the archive.

    Raises:
        StoreError: the store does not answer.
    """

    def heads_of(log: layout.Log) -> list[KnownHead]:
        judge = Judge(store, log, form_of(log), archive, trust)
        heads: list[KnownHead] = []
        for note, parsed in judge.checkpoints(reversed(reader.checkpoint_sizes(store, log))):
            origin = f"a checkpoint of size {parsed.size} in {store.url}"
            heads.append(KnownHead(parsed.size, parsed.root, origin, evidence=note.encode().decode()))
            break
        try:
            tip = find_signed_end(store, form_of(log), judge)
        except StoreError:
            raise
        except CustodyError:
            # Verification of the copy says what is wrong there, or which key is missing.
            pass
        else:
            if tip.head.size:
                heads.append(KnownHead(tip.head.size, tip.head.root, f"the newest entry in {store.url}"))
        return heads

    logs = (*reader.named_logs(store, trust.heads), layout.AUDIT_LOG)
    for log, heads in zip(logs, call_ahead(store, heads_of, logs), strict=True):
        yield from ((str(log), head) for head in heads)
        if not heads and log != layout.AUDIT_LOG:
            yield str(log), None
