"""The flow that runs every night: audit the archive, sign the result, and show it.

The work is in `tasks.audit`. This module has the parameters, spreads pieces over processes or machines, and publishes
the outcome: an artifact with the verdict and the worst findings, a link to the report, and an event for each audit
of the whole archive.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_link_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from custody.errors import CustodyError, Fenced
from custody.findings import Severity
from custody.format.times import as_utc
from flows.publish import HEARD, emit, publish_table
from flows.runners import run_parallel
from flows.summaries import audit_summary
from tasks.audit.conclude import Outcome
from tasks.audit.plan import Request
from tasks.audit.task import read_pieces, report, sign, survey
from tasks.settings import Settings

_SHARES_A_WORKER = 8


@flow(name="audit", persist_result=False, retries=0, **HEARD)
def audit(
    logs: list[str] | None = None,
    full: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
) -> State[Any]:
    """Audit the archive.

    Args:
        logs: `<log>/<partition>`, or `<log>` for all its partitions; all if not given.
        full: read everything again, not only new statements and a share of the old ones.
        since: only statements sealed at this time or later.
        until: only statements sealed before this time.
    """
    request = Request(tuple(logs or ()), full, since and as_utc(since), until and as_utc(until))
    try:
        outcome = _run(request)
    except Fenced as error:
        return Completed(message=str(error))
    except CustodyError as error:
        # One line is enough: a traceback would not help an operator.
        return Failed(message=f"the audit could not be done: {error}")
    if request.whole:
        # An audit of a part, or of nothing, does not stand for the nightly one: its end would silence the alarm.
        emit("custody.audit.ended", "audit", verdict=outcome.verdict, audit=outcome.sequence)
    return _conclude(outcome)


def _run(request: Request) -> Outcome:
    settings = Settings()
    plan = survey(request)
    if plan.clock is not None:
        emit("custody.clock.wrong", "audit", seconds=plan.clock)
    workers = settings.audit.workers
    size = -(-len(plan.pieces) // (workers * _SHARES_A_WORKER)) or 1
    shares = [(plan, plan.pieces[start : start + size]) for start in range(0, len(plan.pieces), size)]
    if workers > 1 and len(shares) > 1:
        done = run_parallel(read_pieces, shares, settings.audit.task_runner, workers)
        results = [result for share in done for result in share]
    else:
        results = read_pieces(plan, plan.pieces)
    outcome = sign(plan, results)
    if settings.audit.report:
        try:
            return replace(outcome, report=report(outcome.sequence))
        except CustodyError as error:
            # The audit is signed already: it does not depend on the report.
            get_run_logger().warning("The integrity report could not be made: %s", error)
    return outcome


def _conclude(outcome: Outcome) -> State[Any]:
    """Publish the findings, and end the run as completed or failed."""
    summary = audit_summary(outcome)
    publish_table("audit", [_row(finding) for finding in outcome.findings], summary)
    if outcome.report:
        create_link_artifact(
            key="integrity-report", link=outcome.report, link_text="Integrity report", description=summary
        )
    get_run_logger().info(summary)
    if outcome.exit_code >= Severity.POLICY:
        worst = [
            f"{finding['finding']}: {finding.get('log', finding.get('key', ''))}: {finding['message']}"
            for finding in outcome.findings[:10]
        ]
        # No data: Prefect accepts only an exception there, and would show its complaint instead of our message.
        return Failed(message="\n".join([summary, *worst]))
    return Completed(message=summary, data=outcome)


def _row(finding: Any) -> dict[str, Any]:
    names = ("severity", "finding", "log", "sequence", "offset", "message", "expected", "found", "count", "action")
    return {name: finding.get(name, "") for name in names}
