"""Makes the automations of `deployments/automations.yaml` on the Prefect server in use, or brings them up to date."""

import asyncio
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import Automation, AutomationCore
from prefect.exceptions import ObjectNotFound, PrefectException, PrefectHTTPStatusError

from custody.errors import ConfigurationError, CustodyError

AUTOMATIONS = Path(__file__).resolve().parents[2] / "deployments" / "automations.yaml"


def make_automations(path: Path = AUTOMATIONS) -> list[str]:
    """Make or update all automations, and return their names.

    Raises:
        ConfigurationError: the file is not of its form, or names a deployment that is not there.
        CustodyError: the server does not answer.
    """
    try:
        wanted = yaml.safe_load(path.read_text())["automations"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is no file of automations: {error}") from None
    try:
        return asyncio.run(_make_all(wanted, path))
    except (PrefectException, PrefectHTTPStatusError, OSError, RuntimeError) as error:
        raise CustodyError(f"the automations could not be made: {type(error).__name__}: {error}") from None


async def _make_all(wanted: list[dict[str, Any]], path: Path) -> list[str]:
    async with get_client() as client:
        return [await _make(client, one, path) for one in wanted]


async def _make(client: PrefectClient, wanted: dict[str, Any], path: Path) -> str:
    try:
        deployment = await client.read_deployment_by_name(wanted["deployment"])
        automation = AutomationCore(
            name=wanted["name"],
            description=wanted.get("description", ""),
            trigger=wanted["trigger"],
            actions=[
                RunDeployment(
                    source="selected",
                    deployment_id=deployment.id,
                    parameters=wanted.get("parameters", {}),
                    job_variables=None,
                )
            ],
        )
    except ObjectNotFound:
        raise ConfigurationError(
            f"{path}: there is no deployment {wanted['deployment']!r} on the server; make the deployments first"
        ) from None
    except (KeyError, ValueError) as error:
        raise ConfigurationError(f"{path}: an automation is not of its form: {error}") from None
    there: list[Automation] = await client.read_automations_by_name(automation.name)
    if there:
        await client.update_automation(there[0].id, automation)
    else:
        await client.create_automation(automation)
    return automation.name


if __name__ == "__main__":
    make_automations()
