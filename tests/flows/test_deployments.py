"""What `deployments/` says of itself."""

import importlib
import re

import yaml
from prefect import Flow
from prefect.events import DeploymentEventTrigger

from flows.operate.up import DEPLOYMENTS

README = (DEPLOYMENTS.parent / "README.md").read_text()
MADE = yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]
TRIGGERS = [trigger for deployment in MADE for trigger in deployment.get("triggers", [])]


def test_the_readme_lists_each_deployment() -> None:
    """The table has each flow and deployment of prefect.yaml, whose entry points are the flows of these names."""
    made = []
    for one in MADE:
        module, _, name = one["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        made.append(f"{flow.name}/{one['name']}")
    assert sorted(re.findall(r"^\| `([a-z]+/[a-z-]+)` \|", README, re.MULTILINE)) == sorted(made)


def test_the_readme_lists_each_automation() -> None:
    """The table has each trigger of prefect.yaml."""
    made = [trigger["name"] for trigger in TRIGGERS]
    assert re.findall(r"^\| `(custody-[a-z-]+)` \|", README, re.MULTILINE) == made


def test_triggers_have_no_misspelt_field() -> None:
    """Each field of a trigger is one of Prefect's, which passes over others in silence and takes a default instead."""
    for trigger in TRIGGERS:
        assert set(trigger) <= set(DeploymentEventTrigger.model_fields)
        assert DeploymentEventTrigger.model_validate(trigger).name == trigger["name"]
