"""What `deployments/` says of itself."""

import importlib
import inspect
import re
from typing import Any

import pytest
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from prefect import Flow
from prefect.events import DeploymentEventTrigger, Event
from prefect.exceptions import ParameterTypeError
from prefect.utilities.schema_tools.validation import is_valid_schema, validate

from flows.alert import alert
from flows.audit import audit
from flows.backfill import backfill
from flows.detect import detect
from flows.drain import drain
from flows.index import index
from flows.operate.deploy import DEPLOYMENTS
from flows.roll import roll

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


def test_each_alert_is_explained() -> None:
    """Each trigger names its own section of docs/alerts.md, which has no other section."""
    page = (DEPLOYMENTS.parents[1] / "docs" / "alerts.md").read_text()
    names = [trigger["name"] for trigger in TRIGGERS]
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == names
    assert [trigger["parameters"]["read_on"] for trigger in TRIGGERS] == [f"custody explain {name}" for name in names]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger["name"])
def test_alerts_are_text(trigger: dict[str, Any]) -> None:
    """What people read is made of an event's fields, never of a whole Python value, and no field is missing."""
    payload = {"problem": "it broke", "run": "http://prefect/run", "seconds": 61.5, "lag": 7, "offsets": 3}
    payload |= dict.fromkeys(("title", "summary", "advice", "evidence", "rule"), "text")
    event = Event.model_validate(
        {
            "event": trigger["expect"][0],
            "resource": {"prefect.resource.id": "custody.log.a/0", "prefect.resource.name": "log.a/0"},
            "payload": payload,
        }
    )
    environment = SandboxedEnvironment(undefined=StrictUndefined)
    made = {name: environment.from_string(text).render(event=event) for name, text in trigger["parameters"].items()}
    inspect.signature(alert.fn).bind(**made)
    assert made["title"].startswith("custody: ")
    assert made["details"]
    assert not re.search(r"[{}]|None", "".join(made.values()))
    assert ("run" in made) == (trigger["posture"] == "Reactive")


@pytest.mark.parametrize("flow", [alert, audit, backfill, detect, drain, index, roll], ids=lambda flow: flow.name)
def test_forms_show_one_type_for_each_field(flow: Flow[..., Any]) -> None:
    """Optional parameters have a plain type in the schema, which Prefect's form shows, and a whole sentence each."""
    for schema in flow.parameters.properties.values():
        assert "anyOf" not in schema
        assert re.fullmatch(r"[A-Z].*\.", schema["description"], re.DOTALL)


@pytest.mark.parametrize(
    ("wrong", "accepted"),
    [
        ({}, True),
        ({"until": "2026-01-03T00:00:00Z", "logs": ["audit.logins/0", "audit.logins"], "late_days": 0}, True),
        ({"logs": ["no log"]}, False),
        ({"late_days": -1}, False),
        ({"types": [""]}, False),
        ({"types": ["user_login"]}, True),
        ({"target": "nowhere"}, False),
        ({"topic": ""}, False),
    ],
)
def test_forms_refuse_what_makes_no_sense(wrong: dict[str, Any], accepted: bool) -> None:
    """Prefect's server takes a form whose optional fields are empty, and refuses values against the rules at once."""
    values = {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z", **wrong}
    schema = backfill.parameters.model_dump_for_openapi()
    is_valid_schema(schema)
    assert (not validate(values, schema, raise_on_error=False, preprocess=True)) == accepted
    if accepted:
        backfill.validate_parameters(values)
    else:
        with pytest.raises(ParameterTypeError):
            backfill.validate_parameters(values)
