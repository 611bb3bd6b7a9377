"""The flow that indexes what Elasticsearch lacks, on demand: after it was down for long, or lost.

The drain indexes each statement right after it is archived. This flow catches up, with shares of the logs in parallel.
Cursors and documents say what is there already, so it may be stopped, killed and started again.
"""

from dataclasses import asdict
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from custody.errors import CustodyError, counted
from flows.parameters import Logs
from flows.publish import HEARD, add_to_name, fail, finish, publish_table, run_name
from flows.runners import run_parallel
from tasks.metrics.run import Run
from tasks.search.index import IndexResult
from tasks.search.task import find_logs, index_share
from tasks.settings import Settings


@flow(name="index", flow_run_name=run_name("index"), persist_result=False, retries=0, **HEARD)
def index(logs: Logs = None) -> State[Any]:
    """Index archived events that Elasticsearch lacks.

    Args:
        logs: Logs to index, such as `audit.logins/0`, or a topic for all its logs. Empty: all.
    """
    run = Run("index")
    try:
        with run.step("index"):
            results = _run(tuple(logs or ()))
    except CustodyError as error:
        return finish(run, fail(str(error)))
    return finish(run, _conclude(results))


def _run(wanted: tuple[str, ...]) -> list[IndexResult]:
    settings = Settings().search
    chosen = find_logs(wanted)
    shares = [chosen[start :: settings.workers] for start in range(min(settings.workers, len(chosen)))]
    if len(shares) > 1:
        done = run_parallel(index_share, [(share,) for share in shares], settings.task_runner, settings.workers)
    else:
        done = [index_share(share) for share in shares]
    results: list[IndexResult] = []
    for share, of_share in zip(shares, done, strict=True):
        if isinstance(of_share, CustodyError):
            results += [IndexResult(log, problem=str(of_share)) for log in share]
        else:
            results += of_share
    return sorted(results, key=lambda result: result.log)


def _conclude(results: list[IndexResult]) -> State[Any]:
    """Publish the results, and end the run as failed if a log could not be indexed in full."""
    problems = [f"{result.log}: {result.problem}" for result in results if result.problem]
    created, rejected = sum(result.created for result in results), sum(result.rejected for result in results)
    summary = (
        f"{counted(created, 'event')} of {counted(len(results), 'log')} indexed,"
        f" {sum(result.there for result in results):,} already there, {rejected:,} rejected."
    )
    worst_first = sorted(results, key=lambda result: (not result.problem, not result.rejected, result.log))
    publish_table("index", [{**asdict(each), "reasons": each.rejections} for each in worst_first], summary)
    get_run_logger().info(summary)
    add_to_name(f"{created:,} indexed" + (f", {counted(len(problems), 'problem')}" if problems else ""))
    if problems:
        return fail("\n".join([summary, *problems[:10]]))
    return Completed(message=summary, data=results)
