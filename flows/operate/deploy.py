"""`custody deploy`: the deployments and automations of `deployments/prefect.yaml`, on a server of Prefect's.

Rules:
- What people switched off on the server stays off.
- Only what changed is deployed. Each deployment's `version` on the server is a digest of what was deployed. A deploy
  makes the automations again, and so the times of silence that they wait for: a worker that restarts again and again
  must not put off the alert about its silence.
- The server signs nothing, so a deploy gets none of the settings, passphrases and keys in the environment.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from custody.cli.common import print_json
from custody.cli.terminal import echo
from custody.errors import ConfigurationError, CustodyError, legible
from custody.store.protocol import is_loopback
from tasks.drain.signals import stop_requested

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments" / "prefect.yaml"

PREFECT = [sys.executable, "-m", "prefect"]
_CLIENT = "custody"
_DEPLOY_SECONDS = 300
"""For all deployments: a slow machine took more than two minutes."""
_TRIES = 20
_LOOPBACK = "127.0.0.1,localhost"


@dataclass(frozen=True, slots=True)
class Api:
    """Prefect's API.

    Attributes:
        url: its URL.
        headers: with the credentials.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Api":
        """Return the API that the variables of Prefect's client name.

        Raises:
            ConfigurationError: they name none.
        """
        url = environment.get("PREFECT_API_URL", "").rstrip("/")
        if urlsplit(url).scheme not in {"http", "https"}:
            raise ConfigurationError("PREFECT_API_URL is not the URL of Prefect's API: set it (deployments/README.md)")
        headers = {"Content-Type": "application/json"}
        if text := environment.get("PREFECT_API_AUTH_STRING"):
            headers["Authorization"] = f"Basic {base64.b64encode(text.encode()).decode()}"
        elif key := environment.get("PREFECT_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        return cls(url, headers)

    def ask(self, path: str, body: object = None) -> Any:
        """Return the API's answer.

        Raises:
            OSError: there is none, or a refusal.
        """
        headers, data = dict(self.headers), None
        if body is not None:
            data = json.dumps(body).encode()
            if token := self._token():
                headers |= {"Prefect-Csrf-Client": _CLIENT, "Prefect-Csrf-Token": token}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)  # noqa: S310 - `of` checks it
        # A proxy is not asked for this machine.
        direct = [urllib.request.ProxyHandler({})] if is_loopback(urlsplit(self.url).hostname or "") else []
        opener = urllib.request.build_opener(*direct)
        for _ in range(_TRIES):
            try:
                with opener.open(request, timeout=30) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # SQLite is locked: what a server under load says.
                if error.code != 503 or stop_requested.wait(1):
                    raise
        raise OSError("Prefect's server answers 503 again and again")

    def _token(self) -> str | None:
        """Return the token that a request with a body needs; None if the server asks for none."""
        try:
            return str(self.ask(f"csrf-token?client={_CLIENT}")["token"])
        except urllib.error.HTTPError as error:
            if error.code != 422:
                raise
            return None


def deploy(
    deployments: Path = DEPLOYMENTS, environment: Mapping[str, str] = os.environ, *, as_json: bool = False
) -> None:
    """Deploy what changed in a file, with its automations. What is switched off on the server stays off.

    Args:
        deployments: the file.
        environment: with the variables of Prefect's client.
        as_json: print one JSON document.

    Raises:
        ConfigurationError: the variables name no server.
        CustodyError: the file cannot be read, the server does not answer, or did not take the deployments.
    """
    api = Api.of(environment)
    try:
        wanted = yaml.safe_load(deployments.read_text(encoding="utf-8"))
        made = {(each["name"], each["entrypoint"]): each for each in api.ask("deployments/filter", {})}
        automations = {each["name"]: each["enabled"] for each in api.ask("automations/filter", {})}
        for deployment in wanted["deployments"]:
            deployment["version"] = _digest(wanted, deployment)
        changed = [each for each in wanted["deployments"] if not _is_made(each, made, automations)]
        off = _keep_off(wanted["deployments"], made, automations)
    except (OSError, HTTPException) as error:
        reason = legible(_reason(error))
        raise CustodyError(
            f"the deployments in {deployments} cannot be read or compared with those at {legible(api.url)}: {reason}."
            " Check PREFECT_API_URL, PREFECT_API_AUTH_STRING and the server"
        ) from None
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise CustodyError(f"the deployments in {deployments} cannot be read or compared: {error}") from None
    if off and not as_json:
        echo(f"switched off in Prefect, and left so: {', '.join(off)}", err=True)
    if changed:
        _create({**wanted, "deployments": changed}, deployments, environment)
    names = [each["name"] for each in changed]
    if as_json:
        print_json({"deployed": names, "left_off": off})
    else:
        echo(f"deployed: {', '.join(names)}" if names else "deployed before, and unchanged")


def _reason(error: Exception) -> str:
    """Return in words why there is no answer."""
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        # Its own text has brackets, the name of a function and a number.
        cause = error.reason
        return (cause.strerror if isinstance(cause, OSError) else None) or str(cause)
    return str(error)


def _digest(wanted: Mapping[str, Any], deployment: Mapping[str, Any]) -> str:
    """Return the digest of all that a deploy tells the server. Runs start in the folder from which it is deployed."""
    common = {name: value for name, value in wanted.items() if name != "deployments"}
    told = json.dumps([str(Path.cwd()), common, deployment], sort_keys=True, default=str)
    return f"custody-{sha256(told.encode()).hexdigest()[:32]}"


def _is_made(
    deployment: Mapping[str, Any], made: Mapping[tuple[str, str], Any], automations: Mapping[str, bool]
) -> bool:
    """Return whether the server has a deployment as it is wanted, with all its automations."""
    known = made.get((deployment["name"], deployment["entrypoint"]))
    triggers = {trigger["name"] for trigger in deployment.get("triggers", ())}
    return known is not None and known["version"] == deployment["version"] and triggers <= automations.keys()


def _keep_off(
    deployments: list[dict[str, Any]], made: Mapping[tuple[str, str], Any], automations: Mapping[str, bool]
) -> list[str]:
    """Switch off the deployments, schedules and automations that are off on the server, and return their names."""
    off = []
    for deployment in deployments:
        known = made.get((deployment["name"], deployment["entrypoint"]))
        if known and known["paused"]:
            off.append(deployment["name"])
            deployment["paused"] = True
        if known and deployment.get("schedules"):
            deployment["schedules"] = kept = _kept_schedules(deployment["schedules"], known["schedules"])
            if not all(schedule.get("active", True) for schedule in kept):
                off.append(f"schedule of {deployment['name']}")
        for trigger in deployment.get("triggers", ()):
            if automations.get(trigger.get("name")) is False:
                off.append(trigger["name"])
                trigger["enabled"] = False
    return off


def _kept_schedules(ours: list[dict[str, Any]], made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the schedules of a deployment: those on the server if ours are among them, since a deploy replaces all."""
    known = [{**each["schedule"], "active": each["active"]} for each in made]
    if all(any(schedule.items() <= each.items() for each in known) for schedule in ours):
        return known
    # Ours are of another version. They are off if all on the server are.
    on = any(each["active"] for each in made)
    return [schedule if on else {**schedule, "active": False} for schedule in ours]


def _create(wanted: Mapping[str, Any], deployments: Path, environment: Mapping[str, str]) -> None:
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    if is_loopback(urlsplit(environment["PREFECT_API_URL"]).hostname or ""):
        environment = direct(environment)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deployments.yaml"
        file.write_text(yaml.safe_dump(wanted), encoding="utf-8")
        try:
            subprocess.run(
                [*PREFECT, "--no-prompt", "deploy", "--prefect-file", str(file), "--all"],
                # Otherwise a package `flows` in the current folder would be imported instead of ours.
                env=without_secrets(environment) | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_DEPLOY_SECONDS,
                check=True,
                start_new_session=True,
            )
        except subprocess.TimeoutExpired as error:
            problem = (
                f"the deployments in {deployments} were not all created: the server or this machine is slow."
                " Run it again."
            )
            raise _not_made(problem, f"'prefect deploy' took more than {_DEPLOY_SECONDS} s", error.stdout) from None
        except subprocess.CalledProcessError as error:
            problem = f"the deployments in {deployments} were not created: correct them, and run it again."
            raise _not_made(problem, str(error), error.stdout) from None


def _not_made(problem: str, reason: str, output: bytes | None) -> CustodyError:
    return CustodyError(problem, reason, *(output or b"").decode(errors="replace")[-2000:].splitlines())


def without_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process that signs nothing."""
    return {name: value for name, value in environment.items() if not name.upper().startswith(("CUSTODY_", "AWS_"))}


def direct(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for processes that ask this machine without a proxy."""
    # Prefect's client fails at a SOCKS proxy even if it is not to be used.
    kept = {
        name: value
        for name, value in environment.items()
        if not (name.lower().endswith("_proxy") and value.lower().startswith("socks"))
    }
    others = environment.get("no_proxy") or environment.get("NO_PROXY")
    without = f"{others},{_LOOPBACK}" if others else _LOOPBACK
    return {**kept, "NO_PROXY": without, "no_proxy": without}
