"""Signs checkpoints at the end of a run, as often as `archive.json` asks."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

from custody.archive.writer import put_checkpoint
from custody.errors import CustodyError
from custody.format import layout
from custody.format.manifest import Manifest
from custody.format.times import parse_time
from tasks.drain.context import Context
from tasks.drain.log_run import LogRun

UPLOADERS = 8
"""Checkpoints that are put at the same time."""

logger = logging.getLogger(__name__)


def put_checkpoints(context: Context, runs: Sequence[LogRun], *, once: bool) -> None:
    """Sign the heads of logs for which a checkpoint is due.

    A checkpoint only covers what is in the archive already, so the drain does not fail if one cannot be written.
    """
    now = datetime.now(UTC)
    signer = context.signers.checkpoints
    if signer is None:
        logger.warning("no checkpoints: no Ed25519 key is valid now; create one, or set `checkpoint_keys`")
        return

    def put(run: LogRun) -> None:
        writer = run.writer
        try:
            if _is_due(context, run, now, once=once):
                put_checkpoint(context.store, context.archive.id, writer.log, writer.tip.head, signer, writer.judge)
        except CustodyError as error:
            logger.warning("no checkpoint of %s: %s", writer.log, error)

    with ThreadPoolExecutor(UPLOADERS, "checkpoint") as pool:
        list(pool.map(put, (run for run in runs if run.result.outcome == "drained")))


def _is_due(context: Context, run: LogRun, now: datetime, *, once: bool) -> bool:
    """Return whether a log's head gets a checkpoint at the end of a run.

    Time is divided into slots of `checkpoint` seconds.

    - A log that grew gets one if its earlier head is of another slot than now. This needs no look at checkpoints.
    - A log that did not grow gets one if its head is of an earlier slot and has none: the last run may have died.
    - The first run of a log writes one, and `once` writes one for every head that has none.
    """
    tip, seconds = run.writer.tip, context.archive.statement.checkpoint

    def slot(moment: datetime) -> int:
        return int(moment.timestamp()) // seconds

    def sealed(newest: Manifest) -> datetime:
        return parse_time(newest.statement.sealed_at)

    if tip.newest is None:
        return False
    if not once and tip.newest is not run.begun.newest:
        return run.begun.newest is None or slot(sealed(run.begun.newest)) != slot(now)
    if not once and slot(sealed(tip.newest)) == slot(now):
        return False
    return not context.store.exists(layout.checkpoint_key(run.writer.log, tip.head.size))
