"""The flow that runs every minute: drain Kafka into the archive, and publish the results.

A run starts at the archive's head, whatever time it was scheduled for. So late, skipped and duplicate runs do no harm:
the flow needs no retries and no cache, and two runs at once only cost work.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError, counted
from flows.parameters import Seconds
from flows.publish import HEARD, add_to_name, emit, fail, finish, publish_table, run_name
from flows.runners import run_parallel
from tasks.drain.log_run import LogResult
from tasks.drain.quarantine import LOOK, excess
from tasks.drain.run import find_partitions
from tasks.drain.signals import GRACE_SECONDS, stop_on_signals
from tasks.drain.task import drain_share
from tasks.metrics.run import Run
from tasks.settings import Settings

if TYPE_CHECKING:
    from tasks.search.index import IndexResult


@dataclass(frozen=True, slots=True)
class RunReport:
    """The flow's result: what the run did to each log, and how many seconds it took."""

    results: tuple[LogResult, ...]
    seconds: float
    indexed: "tuple[IndexResult, ...]" = ()


@flow(name="drain", flow_run_name=run_name("drain"), persist_result=False, retries=0, **HEARD)
def drain(once: bool = False, seconds: Seconds = None) -> State[Any]:
    """Drain Kafka into the archive.

    Args:
        once: End when all events that are in Kafka now are archived, instead of following the topics.
        seconds: The longest time of the run. Empty: the setting `drain.seconds`.
    """
    run = Run("drain")
    try:
        report = _run(run, once, seconds)
    except CustodyError as error:
        return finish(run, fail(str(error)))
    if not report.results:
        kafka = Settings().kafka
        return finish(run, fail(f"no topic on {kafka.bootstrap_servers} matches kafka.topics {kafka.topics}"))
    return finish(run, _conclude(report))


def _run(run: Run, once: bool, seconds: float | None) -> RunReport:
    settings = Settings()
    begin, number = time.monotonic(), settings.drain.shares
    with run.step("find"):
        partitions = find_partitions(settings)
    shares = [partitions[start::number] for start in range(min(number, len(partitions)))]
    arguments = [(share, once, seconds) for share in shares]
    if len(shares) > 1:
        with run.step("drain"):
            done = run_parallel(drain_share, arguments, settings.drain.task_runner, number)
    else:
        # Outside of the step, which notes whether it was stopped.
        with stop_on_signals(grace=GRACE_SECONDS), run.step("drain"):
            done = [drain_share(*each) for each in arguments]
    results: list[LogResult] = []
    indexed: list[IndexResult] = []
    for share, of_share in zip(shares, done, strict=True):
        if isinstance(of_share, CustodyError):
            results += [LogResult(f"{topic}/{part}", "failed", problem=str(of_share)) for topic, part in share]
        else:
            results += of_share[0]
            indexed += of_share[1]
    return RunReport(tuple(results), time.monotonic() - begin, tuple(indexed))


def _conclude(report: RunReport) -> State[Any]:
    """Publish the results, and end the run as failed if a log failed."""
    results = report.results
    problems = [f"{result.log}: {result.problem}" for result in results if result.outcome == "failed"]
    problems += _report_headroom(results)
    events, lag = sum(result.events for result in results), sum(result.lag or 0 for result in results)
    summary = (
        f"{counted(events, 'event')} of {counted(len(results), 'log')} archived,"
        f" {counted(sum(result.quarantined for result in results), 'record')} quarantined,"
        f" {counted(sum(result.lost for result in results), 'offset')} lost,"
        f" {sum(result.unreadable for result in results):,} unreadable; lag {lag:,}."
    )
    unknown = [
        f" Headroom of {result.log}: unknown. {result.headroom_unknown}."
        for result in results
        if result.headroom_unknown
    ]
    # Named in each run, until it is known: else nobody would miss the alert.
    summary += "".join(unknown[:3]) + (
        f" So it is of {counted(len(unknown) - 3, 'more log')}." if len(unknown) > 3 else ""
    )
    summary += _report_quarantine(results)
    worst_first = sorted(results, key=lambda result: (result.outcome == "drained", -(result.lag or 0), result.log))
    indexed = {result.log: result for result in report.indexed}
    publish_table("drain", [_row(result, indexed.get(result.log)) for result in worst_first], summary)
    _report_search(report.indexed)
    for result in results:
        if result.hanging is not None:
            emit("custody.log.hanging-transaction", f"log.{result.log}", seconds=result.hanging, lag=result.lag)
        if result.unreadable:
            emit("custody.log.unreadable", f"log.{result.log}", offsets=result.unreadable)
        if result.vanished:
            emit("custody.log.vanished", f"log.{result.log}", problem=result.problem)
    clock = max((result.clock or 0.0 for result in results), key=abs, default=0.0)
    if clock:
        emit("custody.clock.wrong", "drain", seconds=clock)
    get_run_logger().info(summary)
    counts = [counted(len(results), "log"), counted(events, "event")]
    add_to_name(", ".join([*counts, counted(len(problems), "problem")] if problems else counts))
    if len(problems) == sum(result.vanished for result in results):
        # A topic that vanished has an alert of its own. The one about silence must not name another cause, nor hide
        # a real one.
        emit("custody.drain.completed", "drain", events=events, lag=lag)
    if problems:
        return fail("\n".join([summary, *problems[:10]]))
    return Completed(message=summary, data=report)


def _report_headroom(results: Sequence[LogResult]) -> list[str]:
    """Emit an event for each log whose records are about to be deleted unread, and return the problems."""
    problems = []
    for result in results:
        if result.headroom is not None and result.headroom < Settings().drain.headroom_seconds:
            emit("custody.drain.headroom", f"log.{result.log}", seconds=result.headroom, lag=result.lag)
            problems.append(
                f"{result.log}: Kafka's retention deletes records in {max(result.headroom, 0):,.0f} s that are not"
                " archived: raise the topic's retention now, and drain faster (drain.workers)"
            )
    return problems


def _report_quarantine(results: Sequence[LogResult]) -> str:
    """Emit an event for each log with too many records in quarantine, and return the sentences for the summary.

    Nothing is lost, so the run does not fail.
    """
    share, sentences = Settings().events.quarantined_share, []
    for result in results:
        if problem := excess(result, share):
            get_run_logger().warning("%s: %s. %s", result.log, problem, LOOK)
            emit("custody.log.quarantined", f"log.{result.log}", problem=problem)
            sentences.append(f" {result.log}: {problem}.")
    more = f" So it is with {counted(len(sentences) - 3, 'more log')}." if len(sentences) > 3 else ""
    return "".join(sentences[:3]) + more


def _report_search(indexed: "Sequence[IndexResult]") -> None:
    """Emit an event for each log that cannot be searched in full. Nothing is lost, so the run does not fail."""
    limit = Settings().search.behind_seconds
    for result in indexed:
        if result.rejected:
            get_run_logger().warning(
                "%s is archived, but not all of it can be searched: %s", result.log, result.rejections
            )
        if result.problem is None and result.behind <= limit:
            continue
        problem = result.problem or f"the index is {result.behind:,.0f} s behind the archive"
        get_run_logger().warning("%s is archived, but cannot be searched yet: %s", result.log, problem)
        emit(
            "custody.search.behind",
            f"log.{result.log}",
            seconds=result.behind,
            problem=problem,
            sequence=result.sequence,
        )


def _row(result: LogResult, indexed: "IndexResult | None") -> dict[str, Any]:
    values = asdict(result)
    # What is wrong comes first: the page cuts a wide table on the right.
    row = {name: values.pop(name) for name in ("log", "outcome", "problem")} | values
    # A cell of the page is text.
    row["reasons"] = result.reasons.commonest()
    if result.headroom_unknown:
        row["headroom"] = "unknown"
    if indexed is not None:
        row |= {"indexed": indexed.created + indexed.there, "rejected": indexed.rejected, "search": indexed.problem}
    return row
