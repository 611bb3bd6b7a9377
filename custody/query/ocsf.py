"""Events as OCSF 1.7.0: what each attribute is made of, in one list, and the view `ocsf` that is made from it.

The six event types map to four classes. Events of own types, and records in quarantine, do not. What no attribute of
OCSF takes is in `unmapped`. The view has a column for each attribute of all classes, and with `json` the whole event
without nulls. docs/ocsf.md has the list; a test compares it.

Imports no DuckDB, because the help uses it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from custody.query.ocsf_sql import ANY, Leaf, Node, Object, joined
from custody.version import version

SCHEMA_VERSION = "1.7.0"


@dataclass(frozen=True, slots=True)
class Class:
    """A class of OCSF.

    Attributes:
        name: as OCSF's schema has it.
        uid: its number.
        caption: its name for people.
        category: its category's name.
        kinds: the event types that map to it.
    """

    name: str
    uid: int
    caption: str
    category: str
    kinds: tuple[str, ...]


CLASSES = (
    Class("api_activity", 6003, "API Activity", "Application Activity", ("query_executed", "authz_check")),
    Class("authentication", 3002, "Authentication", "Identity & Access Management", ("auth_attempt",)),
    Class(
        "entity_management",
        3004,
        "Entity Management",
        "Identity & Access Management",
        ("api_key_operation", "config_change"),
    ),
    Class("detection_finding", 2004, "Detection Finding", "Findings", ("security_event",)),
)
KINDS = tuple(kind for each in CLASSES for kind in each.kinds)
"""The event types that map."""
CHOOSING = ("day", "log", "offset", "json")
"""Columns of the view that are no attributes: to choose rows, and the event as JSON."""

_Tree = dict[str, "str | _Tree | Object | Leaf"]


def class_of(text: str) -> Class | None:
    """Return the class of a name or number, None if there is none."""
    return next((each for each in CLASSES if text.lower() in {each.name, str(each.uid)}), None)


# --- the list: SQL over the columns of `events`, by attribute. It is text if no type is said.


def _leaf(sql: str, type_: str = "VARCHAR", *, is_json: bool = False) -> Leaf:
    return Leaf(type_, {ANY: sql}, is_json)


def _json(sql: str) -> Leaf:
    return _leaf(sql, is_json=True)


def _number(sql: str) -> Leaf:
    return _leaf(sql, "INTEGER")


def _long(sql: str) -> Leaf:
    return _leaf(sql, "BIGINT")


def _texts(*sqls: str) -> Leaf:
    return _leaf(f"[{', '.join(sqls)}]", "VARCHAR[]")


def _text(value: str) -> str:
    """Return the SQL of a text."""
    return "'" + value.replace("'", "''") + "'"


def _many(fields: _Tree) -> Object:
    return Object(_nodes(fields), many=True)


def _as_text(fields: _Tree) -> Object:
    return Object(_nodes(fields), is_text=True)


def _nodes(tree: _Tree) -> dict[str, Node]:
    made: dict[str, Node] = {}
    for name, value in tree.items():
        if isinstance(value, str):
            made[name] = _leaf(value)
        else:
            made[name] = Object(_nodes(value)) if isinstance(value, dict) else value
    return made


_UID = "coalesce(event_id, log || '@' || \"offset\")"
_LONGEST_IP = 40
"""OCSF's limit. An IPv6 address that ends as an IPv4 one may have 45 characters."""
_IP: _Tree = {
    "ip": f"CASE WHEN length(client_ip) <= {_LONGEST_IP} THEN client_ip END",
    "name": f"CASE WHEN length(client_ip) > {_LONGEST_IP} THEN client_ip END",
}
_SERVICE: _Tree = {"name": "coalesce(nullif(split_part(source, '/', 1), ''), topic)"}
_KEY: _Tree = {
    "uid": "coalesce(api_key_id, 'unknown')",
    "type_id": _number("CASE WHEN api_key_id IS NULL THEN 0 ELSE 99 END"),
    "type": "CASE WHEN api_key_id IS NULL THEN 'Unknown' ELSE 'API Key' END",
    "credential_uid": "api_key_id",
}
"""A user: all that is known of whoever called is the key."""


def _choice(sql: str, *cases: tuple[Sequence[str], int, str], other: tuple[str, str]) -> tuple[Leaf, str]:
    """Return number and caption of what SQL gives: (values, number, caption), or else the SQL of both."""
    numbers = " ".join(f"WHEN {sql} IN ({', '.join(map(_text, values))}) THEN {n}" for values, n, _ in cases)
    names = " ".join(f"WHEN {sql} IN ({', '.join(map(_text, values))}) THEN {_text(c)}" for values, _, c in cases)
    return _number(f"CASE {numbers} ELSE {other[0]} END"), f"CASE {names} ELSE {other[1]} END"


_INFORMATIONAL = (_number("1"), _text("Informational"))
_SUCCESS = (_number("1"), _text("Success"))


def _base(
    of: Class,
    activity: tuple[Leaf, str],
    *,
    profiles: Sequence[str] = (),
    severity: tuple[Leaf, str] = _INFORMATIONAL,
    status: tuple[Leaf, str] = _SUCCESS,
    unmapped: _Tree,
) -> _Tree:
    """Return what all events have."""
    number, name = activity
    return {
        "class_uid": _number(str(of.uid)),
        "class_name": _text(of.caption),
        "category_uid": _number(str(of.uid // 1000)),
        "category_name": _text(of.category),
        "activity_id": number,
        "activity_name": name,
        "type_uid": _long(f"{of.uid * 100} + {number.made[ANY]}"),
        "type_name": f"{_text(of.caption + ': ')} || {name}",
        "severity_id": severity[0],
        "severity": severity[1],
        "status_id": status[0],
        "status": status[1],
        "time": _long("epoch_us(time) // 1000"),
        "time_dt": _leaf("time", "TIMESTAMP"),
        "metadata": {
            "version": _text(SCHEMA_VERSION),
            "uid": _UID,
            "original_event_uid": "event_id",
            "correlation_uid": "request_id",
            "event_code": "event_type",
            "log_name": "log",
            "sequence": _long('"offset"'),
            "profiles": _texts("'datetime'", *map(_text, profiles)),
            "labels": _leaf("labels", "VARCHAR[]"),
            "product": {"name": "'custody'", "vendor_name": "'custody'", "version": "program"},
        },
        "observables": _many(
            {
                "name": _text("evidences[].src_endpoint.ip" if of.uid == 2004 else "src_endpoint.ip"),
                "type_id": _number("2"),
                "type": "'IP Address'",
                "value": "client_ip",
            }
        ),
        "unmapped": _as_text(
            {
                **unmapped,
                "source": "source",
                "source_seq": _long("source_seq"),
                "batch": _long("batch"),
                "statement": _long("sequence"),
            }
        ),
    }


_API, _LOGIN, _ENTITY, _FINDING = CLASSES
_GRANTED = (_number("if(permission_granted, 1, 2)"), "if(permission_granted, 'Success', 'Failure')")
_ALERT = f"coalesce(details->>'$.alert_id', {_UID})"
_OURS = "alert_type LIKE 'custody.%'"

_KNOWN_ACTIONS = ("blocked", "denied"), ("allowed",), ("alerted",)
_OTHER_ACTION = ("CASE WHEN action_taken IS NULL THEN 0 ELSE 99 END", "coalesce(action_taken, 'Unknown')")


def _taken(*captions: tuple[int, str]) -> tuple[Leaf, str]:
    cases = [(values, *caption) for values, caption in zip(_KNOWN_ACTIONS, captions, strict=True)]
    return _choice("lower(action_taken)", *cases, other=_OTHER_ACTION)


_ACTION = _taken((2, "Denied"), (1, "Allowed"), (3, "Observed"))
_DISPOSITION = _taken((2, "Blocked"), (1, "Allowed"), (19, "Alert"))

_TREES: dict[str, _Tree] = {
    # A mutation may create, update or delete. Without a type it may be one: to call it a read would be wrong.
    "query_executed": _base(
        _API,
        _choice(
            "operation_type",
            (["query", "subscription"], 2, "Read"),
            (["mutation"], 99, "GraphQL mutation"),
            other=("99", "'GraphQL operation'"),
        ),
        unmapped={
            "operation_type": "operation_type",
            "query_hash": "query_hash",
            "complexity": _long("complexity"),
            "execution_time": _leaf("execution_time", "DOUBLE"),
            "result_rows": _long("result_rows"),
        },
    )
    | {
        "actor": {"user": _KEY},
        "api": {"operation": "event_type", "service": _SERVICE, "request": {"uid": "request_id"}},
        "src_endpoint": _IP,
        "duration": _long("TRY_CAST(round(execution_time) AS BIGINT)"),
    },
    "authz_check": _base(
        _API,
        (_number("99"), "'Authorization check'"),
        profiles=["security_control"],
        status=_GRANTED,
        unmapped={},
    )
    | {
        "actor": {
            "user": _KEY,
            "authorizations": _many({"decision": "if(permission_granted, 'granted', 'denied')"}),
        },
        "api": {"operation": "event_type", "service": _SERVICE, "request": {"uid": "request_id"}},
        "src_endpoint": _IP,
        "resources": _many({"type": "resource_type", "uid": "resource_id", "name": "field_name"}),
        "action_id": _number("if(permission_granted, 1, 2)"),
        "action": "if(permission_granted, 'Allowed', 'Denied')",
        "disposition_id": _number("if(permission_granted, 1, 2)"),
        "disposition": "if(permission_granted, 'Allowed', 'Blocked')",
    },
    "auth_attempt": _base(
        _LOGIN,
        (_number("1"), "'Logon'"),
        status=_choice("status", (["success"], 1, "Success"), (["failure"], 2, "Failure"), other=("0", "'Unknown'")),
        unmapped={"key_version": _long("key_version"), "key_age_days": _long("key_age_days")},
    )
    | {
        "user": _KEY,
        "src_endpoint": _IP,
        "service": _SERVICE,
        "status_detail": "failure_reason",
        "auth_protocol_id": _number("99"),
        "auth_protocol": "'API key'",
    },
    "api_key_operation": _base(
        _ENTITY,
        _choice(
            "operation",
            (["created"], 1, "Create"),
            (["rotated"], 3, "Update"),
            (["revoked"], 4, "Delete"),
            other=("99", "coalesce(operation, 'Other')"),
        ),
        unmapped={"operation": "operation"},
    )
    | {
        "src_endpoint": _IP,
        "entity": {
            "uid": "coalesce(api_key_id, 'unknown')",
            "type_id": _number("99"),
            "type": "'API Key'",
            "data": _as_text({"permissions": _json("permissions"), "tier": "tier"}),
        },
    },
    "config_change": _base(
        _ENTITY,
        _choice(
            "lower(operation)",
            (["create", "created"], 1, "Create"),
            (["delete", "deleted"], 4, "Delete"),
            other=("3", "'Update'"),
        ),
        unmapped={"operation": "operation"},
    )
    | {
        "actor": {
            "user": {
                "uid": "coalesce(changed_by, 'unknown')",
                "type_id": _number("0"),
                "type": "'Unknown'",
                "credential_uid": "api_key_id",
            }
        },
        "src_endpoint": _IP,
        "entity": {"name": "coalesce(resource, 'unknown')", "type_id": _number("99"), "type": "'Configuration'"},
        "entity_result": {
            "name": "coalesce(resource, 'unknown')",
            "type_id": _number("99"),
            "type": "'Configuration'",
            "data": _json("changes"),
        },
        "comment": "approval_status",
    },
    "security_event": _base(
        _FINDING,
        _choice(
            f"CASE WHEN {_OURS} THEN details->>'$.kind' END",
            (["grown"], 2, "Update"),
            (["over"], 3, "Close"),
            other=("1", "'Create'"),
        ),
        profiles=["security_control"],
        severity=_choice(
            "severity",
            (["low"], 2, "Low"),
            (["medium"], 3, "Medium"),
            (["high"], 4, "High"),
            (["critical"], 5, "Critical"),
            other=("0", "'Unknown'"),
        ),
        status=_choice(
            f"CASE WHEN {_OURS} THEN details->>'$.kind' END",
            (["grown"], 2, "In Progress"),
            (["over"], 4, "Resolved"),
            other=("1", "'New'"),
        ),
        unmapped={"action_taken": "action_taken"},
    )
    | {
        "finding_info": {
            "uid": _ALERT,
            "title": "coalesce(details->>'$.title', alert_type)",
            "types": _texts("alert_type"),
            "created_time": _long("epoch_us(time) // 1000"),
        },
        "is_alert": _leaf("true", "BOOLEAN"),
        "evidences": _many(
            {
                "src_endpoint": _IP,
                "user": {
                    "uid": "api_key_id",
                    "type_id": _number("CASE WHEN api_key_id IS NOT NULL THEN 99 END"),
                    "type": "CASE WHEN api_key_id IS NOT NULL THEN 'API Key' END",
                    "credential_uid": "api_key_id",
                },
                "data": _json("details"),
            }
        ),
        "action_id": _ACTION[0],
        "action": _ACTION[1],
        "disposition_id": _DISPOSITION[0],
        "disposition": _DISPOSITION[1],
    },
}


# --- what is made of it


def tree(kinds: Iterable[str] = KINDS) -> Object:
    """Return the attributes that events of some types have."""
    return joined({kind: Object(_nodes(_TREES[kind])) for kind in kinds})


def columns(kinds: Sequence[str]) -> str:
    """Return the SQL of a column for each attribute that events of some types have."""
    return ", ".join(f'{node.column(kinds)} AS "{name}"' for name, node in tree(kinds).fields.items())


def as_json(kinds: Sequence[str]) -> str:
    """Return the SQL of an event as the text of a JSON object, without nulls, made of the columns."""
    return tree(kinds).json()


def mapped(kinds: Sequence[str] = KINDS) -> str:
    """Return the condition that an event of some types meets: it has what each valid event has.

    Only the holder of a key can archive others. Verification reports these.
    """
    known = ", ".join(map(_text, kinds))
    return f"event_type IN ({known}) AND event IS NULL AND time IS NOT NULL AND client_ip IS NOT NULL"


def view() -> str:
    """Return the SQL that creates the view. DuckDB parses and binds it, which takes a while, where it is used."""
    # All names are ours.
    source = f"SELECT {given()} FROM events WHERE {mapped()}"  # noqa: S608
    own = f'day, log, "offset" FROM ({source})'
    whole = f"SELECT *, {as_json(KINDS)} AS json FROM (SELECT {columns(KINDS)}, {own})"  # noqa: S608
    return f"CREATE TEMP VIEW ocsf WITH (DEFER_BINDING) AS FROM query({_text(whole)})"


def given(label: str | None = None) -> str:
    """Return the SQL of what attributes are made of: the columns of `events`, a label, and the program's version."""
    labels = "NULL" if label is None else f"[{_text(label)}]"
    return f"*, CAST({labels} AS VARCHAR[]) AS labels, {_text(version())} AS program"


def view_columns() -> list[tuple[str, str, str]]:
    """Return the view's columns: name, type, and meaning."""
    having = {each.caption: tree(each.kinds).fields for each in CLASSES}

    def classes(name: str) -> str:
        captions = [caption for caption, fields in having.items() if name in fields]
        return "all classes" if len(captions) == len(CLASSES) else ", ".join(captions)

    return [
        *((name, node.type, f"OCSF: {classes(name)}") for name, node in tree().fields.items()),
        ("day", "DATE", "the day on which its statement was sealed"),
        ("log", "VARCHAR", "the log"),
        ("offset", "BIGINT", "the record's offset in Kafka, for `custody show LOG OFFSET`"),
        ("json", "VARCHAR", "the whole event as OCSF, in JSON without nulls"),
    ]


def table() -> list[str]:
    """Return the list for docs/ocsf.md, in lines: what each attribute of each event type is made of."""
    lines: list[str] = []
    for each in CLASSES:
        for kind in each.kinds:
            lines += [f"### {kind}: {each.caption} ({each.uid})", "", "| attribute | made of |", "|---|---|"]
            lines += [f"| `{path}` | `{_cell(leaf.made[kind])}` |" for path, leaf in tree([kind]).paths()]
            lines.append("")
    return lines[:-1]


def _cell(sql: str) -> str:
    return sql.replace("|", "\\|")
