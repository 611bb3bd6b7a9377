"""What `deployments/` says of itself."""

import importlib
import re

import yaml
from prefect import Flow

from flows.operate.automations import AUTOMATIONS
from flows.operate.up import DEPLOYMENTS

README = (DEPLOYMENTS.parent / "README.md").read_text()


def test_the_readme_lists_each_deployment() -> None:
    """The table has each flow and deployment of prefect.yaml, whose entry points are the flows of these names."""
    made = []
    for one in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]:
        module, _, name = one["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        assert isinstance(flow, Flow)
        made.append(f"{flow.name}/{one['name']}")
    assert sorted(re.findall(r"^\| `([a-z]+/[a-z-]+)` \|", README, re.MULTILINE)) == sorted(made)


def test_the_readme_lists_each_automation() -> None:
    """The table has each automation of automations.yaml."""
    made = [one["name"] for one in yaml.safe_load(AUTOMATIONS.read_text())["automations"]]
    assert re.findall(r"^\| `(custody-[a-z-]+)` \|", README, re.MULTILINE) == made
