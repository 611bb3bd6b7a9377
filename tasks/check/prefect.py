"""Checks Prefect's server by its API: the deployments, their schedules, a worker, and the automations that alert.

Prefect itself is not imported: that takes two seconds, and its client may start a server of its own.
"""

import base64
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import yaml

from custody.errors import CustodyError, counted, legible
from custody.store.protocol import is_loopback
from tasks.check.model import Line, Reporter

REQUEST_SECONDS = 3.0
"""Timeout of one request."""
_ANSWER_BYTES = 8 * 1024 * 1024

_report = Reporter("prefect")
_DEPLOY = "deploy them (deployments/README.md)"


class _Refused(CustodyError):
    """The server did not give an answer.

    Attributes:
        status: of HTTP; None without an answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def check(deployments: Path, environment: Mapping[str, str] = os.environ) -> Iterator[Line]:
    """Yield what Prefect's server has.

    Args:
        deployments: the file with the deployments that it should have.
        environment: with the variables of Prefect's client.
    """
    url = environment.get("PREFECT_API_URL", "").rstrip("/")
    if not url:
        message = "PREFECT_API_URL is not set: nothing is scheduled from here"
        yield _report.warning("server", message, "run 'custody up', or set it to your server (deployments/README.md)")
        return
    api = _Api(url, environment)
    try:
        version = api.get("admin/version")
    except _Refused as error:
        unreached = error.status is None
        remedy = "start the server, or correct PREFECT_API_URL"
        if error.status in {401, 403}:
            remedy = "correct PREFECT_API_AUTH_STRING or PREFECT_API_KEY"
        yield _report.failed("server", str(error), remedy, passing=unreached)
        return
    yield _report.ok("server", f"{api.shown} answers, Prefect {legible(str(version))}")
    yield from _check_deployments(api, deployments)


def _check_deployments(api: "_Api", path: Path) -> Iterator[Line]:
    try:
        wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        yield _report.warning("deployments", f"{path} cannot be read: {type(error).__name__}", "correct it")
        return
    missing, off, pools = [], [], set()
    for deployment in wanted:
        flow = deployment["entrypoint"].rpartition(".")[2]
        name = f"{flow}/{deployment['name']}"
        try:
            known = api.get(f"deployments/name/{quote(flow)}/{quote(deployment['name'])}")
        except _Refused as error:
            if error.status != 404:
                raise
            missing.append(name)
            continue
        pools.add(deployment["work_pool"]["name"])
        active = [schedule for schedule in known.get("schedules", ()) if schedule.get("active")]
        if known.get("paused") or (deployment.get("schedules") and not active):
            off.append(name)
        if deployment.get("triggers"):
            yield from _automations(api, known["id"], {trigger["name"] for trigger in deployment["triggers"]})
    if missing:
        yield _report.failed("deployments", f"the server lacks {', '.join(missing)}", _DEPLOY)
    else:
        yield _report.ok("deployments", f"all {len(wanted)} are there")
    if off:
        message = f"paused, or without an active schedule: {', '.join(off)}"
        yield _report.warning("schedules", message, "switch them on, on the page of the deployment")
    elif not missing:
        yield _report.ok("schedules", "all are active")
    for pool in sorted(pools):
        yield _pool(api, pool)


def _automations(api: "_Api", deployment: str, wanted: set[str]) -> Iterator[Line]:
    """Yield whether the automations that alert are there, and on."""
    known = {
        each["name"]: each["enabled"] for each in api.get(f"automations/related-to/prefect.deployment.{deployment}")
    }
    missing, off = sorted(wanted - known.keys()), sorted(name for name in wanted & known.keys() if not known[name])
    if missing:
        yield _report.failed("automations", f"the server lacks {', '.join(missing)}: they alert nobody", _DEPLOY)
    if off:
        yield _report.warning(
            "automations", f"switched off: {', '.join(off)}", "switch them on, on the page Automations"
        )
    if not missing and not off:
        yield _report.ok("automations", f"{counted(len(wanted), 'automation')} on")


def _pool(api: "_Api", name: str) -> Line:
    """Return whether a worker runs what is scheduled."""
    try:
        pool = api.get(f"work_pools/{quote(name)}")
    except _Refused as error:
        if error.status != 404:
            raise
        remedy = f"start one: prefect worker start --pool {name} --type process"
        return _report.failed("worker", f"there is no work pool {name}", remedy)
    if pool.get("is_paused"):
        return _report.warning("worker", f"the work pool {name} is paused: nothing runs", "resume it")
    if pool.get("status") != "READY":
        remedy = f"start one: prefect worker start --pool {name} --type process"
        return _report.failed("worker", f"no worker of the pool {name} is alive: nothing runs", remedy, passing=True)
    return _report.ok("worker", f"a worker of the pool {name} is alive")


class _Api:
    """Prefect's API, as far as it needs no token for changes.

    Attributes:
        shown: its URL, without credentials.
    """

    def __init__(self, url: str, environment: Mapping[str, str]) -> None:
        self._url, self.shown = url, legible(url)
        self._headers = {"Accept": "application/json"}
        if text := environment.get("PREFECT_API_AUTH_STRING"):
            self._headers["Authorization"] = f"Basic {base64.b64encode(text.encode()).decode()}"
        elif key := environment.get("PREFECT_API_KEY"):
            self._headers["Authorization"] = f"Bearer {key}"
        # A proxy is not asked for this machine.
        direct = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(url).hostname or "") else []
        self._opener = urllib.request.build_opener(*direct)

    def get(self, path: str) -> Any:
        """Return the answer.

        Raises:
            _Refused: there is none, or a refusal.
        """
        try:
            request = urllib.request.Request(f"{self._url}/{path}", headers=self._headers)  # noqa: S310 - checked below
            if request.type not in {"http", "https"}:
                raise _Refused("PREFECT_API_URL is not a URL with http:// or https://")
            with self._opener.open(request, timeout=REQUEST_SECONDS) as answer:
                return json.loads(answer.read(_ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            message = f"Prefect's server at {self.shown} answers {error.code} to {path.partition('/')[0]}"
            raise _Refused(message, error.code) from None
        except (OSError, HTTPException) as error:
            reason = legible(str(getattr(error, "reason", error)))
            raise _Refused(f"Prefect's server at {self.shown} does not answer: {reason}") from None
        except (ValueError, RecursionError):
            raise _Refused(f"what answers at {self.shown} is no server of Prefect's: correct PREFECT_API_URL") from None
