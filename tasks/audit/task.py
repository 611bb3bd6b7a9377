"""An audit's phases as Prefect tasks. Reading is retried if the storage did not answer; signing is never retried."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from custody.errors import TransientStoreError
from tasks.audit.conclude import Outcome, conclude
from tasks.audit.kept import Kept, Share
from tasks.audit.objects import put_report
from tasks.audit.pieces import PieceResult, verify_pieces
from tasks.audit.plan import Piece, Plan, Request, plan_audit
from tasks.settings import Settings


def may_pass(_task: Any, _run: Any, state: State[Any]) -> bool:
    """Return whether a retry may help."""
    return state.is_failed() and isinstance(state.result(raise_on_failure=False), TransientStoreError)


_READING: Any = {
    "cache_policy": NO_CACHE,
    "persist_result": False,
    "retries": 2,
    "retry_delay_seconds": 30,
    "retry_condition_fn": may_pass,
}


@task(name="survey", **_READING)
def survey(request: Request, kept: Kept) -> Plan:
    """Survey the archive, and plan the audit."""
    return plan_audit(Settings(), request, datetime.now(UTC), kept)


@task(name="read-pieces", **_READING)
def read_pieces(plan: Plan, pieces: Sequence[Piece], share: Share) -> list[PieceResult]:
    """Verify some pieces."""
    return list(verify_pieces(Settings(), plan, pieces, kept=share.kept))


@task(name="sign", cache_policy=NO_CACHE, persist_result=False, retries=0)
def sign(plan: Plan, results: Sequence[PieceResult], kept: Kept) -> Outcome:
    """Sign and write the audit."""
    return conclude(Settings(), plan, results, kept)


@task(name="report", cache_policy=NO_CACHE, persist_result=False, retries=0)
def report(sequence: int) -> str:
    """Make the integrity report, and store it as HTML."""
    # matplotlib takes half a second to import, and the processes that read shares do not need it.
    from tasks.audit.report import make_report

    settings = Settings()
    return put_report(settings, sequence, make_report(settings, sequence))
