"""Checks events against OCSF's schema, offline."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from custody.query import ocsf


@cache
def validator(of: str) -> Draft202012Validator:
    """Return the validator of a class, from the schema that the library has with it."""
    return Draft202012Validator(schemas().get_class_schema(of, ["datetime", "security_control"]))


@cache
def schemas() -> OcsfJsonSchemaEmbedded:
    """Return OCSF's schema."""
    return OcsfJsonSchemaEmbedded(get_ocsf_schema(version=ocsf.SCHEMA_VERSION))


def check_ocsf(event: Mapping[str, Any]) -> None:
    """Check an event against its class, and what the schema does not say."""
    of = next(each for each in ocsf.CLASSES if each.uid == event["class_uid"])
    problems = [f"{error.json_path}: {error.message[:200]}" for error in validator(of.name).iter_errors(event)]
    assert not problems, (problems, event)
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert event["category_uid"] == event["class_uid"] // 1000
    enums = schemas().schema.schema["classes"][of.name]["attributes"]
    for name in ("activity_id", "severity_id", "status_id", "action_id", "disposition_id"):
        if name in event:
            assert str(event[name]) in enums[name]["enum"]
            label = "activity_name" if name == "activity_id" else name.removesuffix("_id")
            assert event[name] == 99 or event[label] == enums[name]["enum"][str(event[name])]["caption"]


def nulls(value: Any, path: str = "") -> Iterator[str]:
    """Yield where an event has a null, an empty object or list of ours; what is archived may have any."""
    if value is None or value in ({}, []):
        yield path
    elif isinstance(value, dict):
        for name, each in value.items():
            if name not in {"data", "unmapped"}:
                yield from nulls(each, f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            yield from nulls(each, f"{path}[]")


def from_columns(row: Mapping[str, Any]) -> Any:
    """Return the event that columns are, without nulls."""
    event = without_nulls({name: value for name, value in row.items() if name not in ocsf.CHOOSING})
    event["time_dt"] = event["time_dt"].replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    event["unmapped"] = json.loads(event["unmapped"])
    for name in ("entity", "entity_result"):
        if "data" in event.get(name, {}):
            event[name]["data"] = json.loads(event[name]["data"])
    for evidence in event.get("evidences", ()):
        evidence["data"] = json.loads(evidence["data"])
    return event


def without_nulls(value: Any) -> Any:
    """Return a value without the attributes that are null."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
