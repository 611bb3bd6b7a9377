"""The flow that runs every night: audit the archive, sign the result, and show it.

The work is in `tasks.audit`. This module has the parameters, spreads pieces over processes or machines, and publishes
the outcome: an artifact with the verdict and the worst findings, a link to the report, and an event for each audit
of the whole archive.
"""

from dataclasses import replace
from typing import Any

import msgspec
from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError, Fenced
from custody.findings import Severity
from custody.format.times import as_utc
from flows.parameters import Logs, Time
from flows.publish import HEARD, add_to_name, emit, fail, finish, publish_report, publish_text, run_name
from flows.runners import run_parallel
from flows.summaries import audit_details, audit_summary, findings_markdown
from tasks.audit.conclude import Outcome
from tasks.audit.kept import Kept
from tasks.audit.pieces import PieceResult
from tasks.audit.plan import Plan, Request, shares_of
from tasks.audit.task import read_pieces, report, sign, survey
from tasks.metrics.run import Run
from tasks.settings import Settings


@flow(name="audit", flow_run_name=run_name("audit"), persist_result=False, retries=0, **HEARD)
def audit(
    logs: Logs = None,
    full: bool = False,
    since: Time = None,
    until: Time = None,
) -> State[Any]:
    """Audit the archive.

    Args:
        logs: Logs to audit, such as `audit.logins/0`, or a topic for all its logs. Empty: all.
        full: Read everything again, not only new statements and a share of the old ones.
        since: Only statements sealed at this time or later. Empty: from the first.
        until: Only statements sealed before this time. Empty: to the newest.
    """
    request = Request(tuple(logs or ()), full, since and as_utc(since), until and as_utc(until))
    run = Run("audit")
    try:
        outcome = _run(run, request)
    except Fenced as error:
        return finish(run, Completed(message=str(error)))
    except CustodyError as error:
        return finish(run, fail(f"the audit could not be done: {error}"))
    if request.whole:
        # An audit of a part, or of nothing, does not stand for the nightly one: its end would silence the alarm.
        emit("custody.audit.ended", "audit", verdict=outcome.verdict, audit=outcome.sequence)
    return finish(run, _conclude(outcome))


def _run(run: Run, request: Request) -> Outcome:
    settings = Settings()
    with Kept() as kept:
        with run.step("survey"):
            plan = survey(request, kept)
        if plan.clock is not None:
            emit("custody.clock.wrong", "audit", seconds=plan.clock)
        with run.step("read"):
            results = _read(settings, plan, kept)
        with run.step("sign"):
            outcome = sign(plan, results, kept)
    if settings.audit.report:
        try:
            with run.step("report"):
                return replace(outcome, report=report(outcome.sequence))
        except CustodyError as error:
            # The audit is signed already: it does not depend on the report.
            get_run_logger().warning("The integrity report could not be made: %s", error)
    return outcome


def _read(settings: Settings, plan: Plan, kept: Kept) -> list[PieceResult]:
    """Verify the pieces, in parallel if that is set, and return their results in order."""
    workers, runner = settings.audit.workers, settings.audit.task_runner
    # Another runner's workers may be on other machines.
    sent = runner not in {"threads", "processes"}
    # Each share has its own pieces: of a large audit all of them are megabytes, for each share again.
    bare = msgspec.structs.replace(plan, pieces=())
    shares = [
        (bare, pieces, kept.share(((each.log, each.first, each.end) for each in pieces), sent=sent))
        for pieces in shares_of(plan.pieces, workers)
    ]
    if len(shares) == 1:
        return read_pieces(*shares[0])
    results: list[PieceResult] = []
    for share in run_parallel(read_pieces, shares, runner, workers):
        if isinstance(share, CustodyError):
            # Nothing is signed without it. What the others read is not read again: they have signed their pieces.
            raise share
        results += share
    return results


def _conclude(outcome: Outcome) -> State[Any]:
    """Publish the findings, and end the run as completed or failed."""
    summary = audit_summary(outcome)
    publish_text("audit", findings_markdown(outcome), summary)
    if outcome.report:
        publish_report(outcome.report, summary)
    get_run_logger().info(summary)
    add_to_name(f"{outcome.verdict}, findings: {len(outcome.findings):,}")
    if outcome.exit_code >= Severity.POLICY:
        return fail(audit_details(outcome))
    return Completed(message=summary, data=outcome)
