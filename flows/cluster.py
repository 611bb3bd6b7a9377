"""Runs tasks on a Dask cluster: one that the settings name, or workers that a run starts on its own machine.

Rules:
- What is sent to a worker has no secret. A task reads custody's settings on the worker, and Prefect's client there uses
  the worker's own settings, because Prefect's context would send the credentials of its API.
- A share whose worker dies is run again by Dask, on another worker. That costs time alone: drains continue from the
  archive's head, audits after the last piece that they signed, backfills and indexing from what the target has.
- A cluster that cannot be started or reached, or has no worker, ends the run with one line, and does not keep it
  waiting.
- Workers that a run starts come back whenever they die. If none does, the run ends too.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import dask
import distributed
from distributed.scheduler import NoWorkerError
from prefect import Task
from prefect.context import SettingsContext
from prefect_dask.task_runners import DaskTaskRunner

from custody.errors import ConfigurationError, CustodyError
from tasks.spread import DaskSettings

_AGAIN = "Nothing is lost: the next run continues"

# What Dask's files and variables say comes first, unless it is Dask's default.
dask.config.update_defaults(
    {
        "distributed": {
            # A cluster looks 15 seconds after each death of a worker whether that worker is there. If it was just
            # starting again, slowly or because it died once more, it would be dropped for good, and with the last one
            # the run would wait for ever. A worker starts again by itself, so there is nothing to look for.
            "deploy": {"lost-worker-timeout": "1 day"},
            # The last worker could not be started again.
            "scheduler": {"no-workers-timeout": "5 minutes"},
            # Dask looks 100 times a second where a worker's threads are. Before CPython 3.11.9 that can hang the worker
            # for ever (python/cpython#106883), and nobody looks at what it finds.
            "worker": {"profile": {"enabled": False}},
        }
    }
)


# Of a cluster that does not start, Prefect logs the traceback too.
logging.getLogger("prefect.task_runner.cluster").addFilter(lambda record: not record.exc_info)


class _UnsentSettings(SettingsContext):
    """Prefect's settings as they are here. Nothing of them is sent."""

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:  # noqa: ARG002 - the signature is Prefect's
        """Return nothing, so that a worker takes its own settings."""
        return {}


class ClusterTaskRunner(DaskTaskRunner):
    """Dask's task runner of Prefect, which sends no settings of Prefect's."""

    @property
    def client(self) -> Any:
        """The cluster's client. The first time, the cluster is started, or connected to.

        Raises:
            CustodyError: that is not possible.
        """
        try:
            return super().client
        except (OSError, RuntimeError) as error:
            raise CustodyError(f"the Dask cluster cannot be used ({_reason(error)}). {_AGAIN}") from None

    def submit(
        self,
        task: Task[..., Any],
        parameters: dict[str, Any],
        wait_for: Iterable[Any] | None = None,
        dependencies: dict[str, set[Any]] | None = None,
    ) -> Any:
        """Send a task to a worker."""
        own = SettingsContext.get()
        assert own is not None, "Prefect has settings wherever a flow runs"  # noqa: S101
        with _UnsentSettings(profile=own.profile, settings=own.settings):
            return super().submit(task, parameters, wait_for, dependencies)


def cluster_runner(settings: DaskSettings, workers: int) -> ClusterTaskRunner:
    """Return a task runner for the cluster of the settings, or for so many workers on this machine.

    Raises:
        ConfigurationError: the cluster cannot be reached, or has no worker.
    """
    if settings.address:
        security = _security(settings)
        _reach(settings, settings.address, security)
        return ClusterTaskRunner(
            address=settings.address, client_kwargs={"security": security, "timeout": settings.wait_seconds}
        )
    local = {
        "n_workers": 1 if settings.adaptive else workers,
        "threads_per_worker": 1,
        # Dask would end a worker by its memory. A drain is bounded by itself (docs/large-records.md).
        "memory_limit": 0,
        # On a free port. Without Bokeh, which custody does not need, it shows names of tasks and no dashboard.
        "dashboard_address": "127.0.0.1:0",
        # Keys made for this run: else everybody on this machine could run programs as this user.
        "security": True,
    }
    adapt = {"minimum": 1, "maximum": workers} if settings.adaptive else None
    return ClusterTaskRunner(cluster_kwargs=local, adapt_kwargs=adapt)


def _security(settings: DaskSettings) -> distributed.Security | None:
    if settings.ca_certs is None:
        return None
    return distributed.Security(  # type: ignore[no-untyped-call]
        require_encryption=True,
        tls_ca_file=str(settings.ca_certs),
        tls_client_cert=str(settings.certificate),
        tls_client_key=str(settings.key_file),
    )


def _reach(settings: DaskSettings, address: str, security: distributed.Security | None) -> None:
    """Raise an error unless the scheduler answers and has a worker."""
    seconds = settings.wait_seconds
    problem = f"the Dask scheduler at {address} (dask.address) does not answer"
    try:
        client = distributed.Client(  # type: ignore[no-untyped-call]
            address, timeout=seconds, security=security, set_as_default=False
        )
        with client:
            problem = f"the Dask cluster at {address} has had no worker for {seconds:g} s: start one (dask worker)"
            client.wait_for_workers(1, timeout=seconds)
    # Certificates that do not fit and files that are missing are OSErrors too.
    except OSError as error:
        raise ConfigurationError(f"{problem} ({_reason(error)}). {_AGAIN}") from None


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Raise Dask's errors about its cluster as errors of custody."""
    try:
        yield
    except distributed.KilledWorker as error:
        raise CustodyError(
            f"a share of the work was given up, because {error.allowed_failures + 1} Dask workers died while they ran"
            f" it: look at their logs and memory. {_AGAIN}"
        ) from None
    except NoWorkerError as error:
        raise CustodyError(f"all workers of the Dask cluster are gone for {error.timeout:g} s. {_AGAIN}") from None
    except distributed.CancelledError as error:
        reason = " ".join(str(error).split())[:300]
        raise CustodyError(f"the Dask cluster dropped a share of the work ({reason}). {_AGAIN}") from None
