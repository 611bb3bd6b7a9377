"""Settings of where flows run their shares: a task runner, and the Dask cluster of those that run on Dask."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from custody.settings import FilePath

_RUNNERS = ("threads", "processes", "dask")


def _runner(value: str) -> str:
    if value not in _RUNNERS and not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value, re.ASCII):
        raise ValueError(
            "want 'threads', 'processes' or 'dask', or the class of another Prefect task runner: package.module:Class"
        )
    return value


def _scheduler(value: str) -> str:
    if not re.fullmatch(r"(tcp|tls)://(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@,\[\]]+):[0-9]{1,5}", value):
        raise ValueError("want tls://host:8786, or tcp://host:8786")
    return value


TaskRunner = Annotated[str, AfterValidator(_runner)]
"""What a flow runs its tasks on: one of `_RUNNERS`, or the class of another Prefect task runner."""


class BackfillSettings(BaseModel):
    """How a backfill is spread. One to a topic is not: it stores its positions in order."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    workers: int = Field(default=1, ge=1, le=1024, description="Shares of the events that are copied in parallel")
    task_runner: TaskRunner = Field(default="threads", description="Where the flow runs these shares")


class DaskSettings(BaseModel):
    """The Dask cluster of flows whose `task_runner` is `dask`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    address: Annotated[str, AfterValidator(_scheduler)] | None = Field(
        default=None,
        description="Scheduler of a cluster, tls://host:8786; without it each run starts workers on its own machine",
    )
    adaptive: bool = Field(
        default=False, description="Whether the workers that a run starts follow its load, instead of starting all"
    )
    wait_seconds: float = Field(
        default=30,
        gt=0,
        allow_inf_nan=False,
        description="How long a run waits for that scheduler, and then for its first worker; then it fails",
    )
    ca_certs: FilePath | None = Field(
        default=None, description="File with the CA certificate of the cluster, for tls://"
    )
    certificate: FilePath | None = Field(default=None, description="File with the certificate for the cluster")
    key_file: FilePath | None = Field(default=None, description="File with the key of that certificate")

    @model_validator(mode="after")
    def _check(self) -> "DaskSettings":
        files = (self.ca_certs, self.certificate, self.key_file)
        if (self.address or "").startswith("tls://") != all(files) or any(files) != all(files):
            raise ValueError(
                "an address with tls:// needs all of ca_certs, certificate and key_file; no other has them"
            )
        if self.address and self.adaptive:
            raise ValueError("adaptive is for workers that a run starts, and address names a cluster: remove one")
        return self
