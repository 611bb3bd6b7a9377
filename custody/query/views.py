"""The tables of `custody query`: their columns, types and meanings, in one list.

The help, docs/views.md, the hints for a wrong name, and the types of columns are made from it. `events` selects
the columns of `tables.SCHEMA` in this order, `sources` and `detections` sum up `events`, and `ocsf` is made of it; a
test compares them with this list.
Imports neither DuckDB nor Arrow, because the help uses it.
"""

from dataclasses import dataclass

from custody.query import ocsf


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its name, its DuckDB type and its meaning."""

    name: str
    type: str
    meaning: str


@dataclass(frozen=True, slots=True)
class View:
    """A table: its name, its meaning, and its columns in the order of `SELECT *`: what most questions need first."""

    name: str
    meaning: str
    columns: tuple[Column, ...]


def _columns(text: str) -> tuple[Column, ...]:
    """Return the columns of a list, one a line: name, type, meaning."""
    return tuple(Column(*line.split(maxsplit=2)) for line in text.strip().splitlines())


VIEWS = (
    View(
        "events",
        "one row for each archived event. A field that an event does not have, or of another type, is NULL",
        _columns("""
            time TIMESTAMP the event's own `timestamp`
            log VARCHAR the log: `topic/partition`, with `@epoch` after the topic from the second epoch on
            offset BIGINT the record's offset in Kafka, for `custody show LOG OFFSET` and `custody evidence LOG OFFSET`
            event_type VARCHAR the event's type
            api_key_id VARCHAR the API key that was used
            client_ip VARCHAR the client's address
            status VARCHAR `auth_attempt`: `success` or `failure`
            request_id VARCHAR the request
            severity VARCHAR `security_event`: `low`, `medium`, `high` or `critical`
            query_hash VARCHAR `query_executed`: the query
            complexity BIGINT `query_executed`: how complex the query is
            execution_time DOUBLE `query_executed`: how long it ran, in ms
            result_rows BIGINT `query_executed`: how many rows it gave
            operation_type VARCHAR `query_executed`: `query`, `mutation` or `subscription`; NULL in older tables
            failure_reason VARCHAR `auth_attempt`: why it failed
            key_version BIGINT `auth_attempt`: the version of the key
            key_age_days BIGINT `auth_attempt`: the age of the key, in days
            resource_type VARCHAR `authz_check`: the type of what was asked for
            resource_id VARCHAR `authz_check`: what was asked for
            field_name VARCHAR `authz_check`: the field that was asked for
            permission_granted BOOLEAN `authz_check`: whether it was allowed
            operation VARCHAR `api_key_operation`: `created`, `rotated` or `revoked`; `config_change`: what was done
            permissions VARCHAR `api_key_operation`: the key's permissions, as JSON
            tier VARCHAR `api_key_operation`: the key's tier
            alert_type VARCHAR `security_event`: what was noticed
            details VARCHAR `security_event`: more about it, as JSON
            action_taken VARCHAR `security_event`: what was done about it
            resource VARCHAR `config_change`: what was changed
            changed_by VARCHAR `config_change`: who changed it
            changes VARCHAR `config_change`: the changes, as JSON
            approval_status VARCHAR `config_change`: whether it was approved
            event_id VARCHAR the event's own id, if its emitter gave it one; repeats of an event have the same
            source VARCHAR the process that emitted it: `service/instance/pid-start`, of at most 256 characters
            source_seq BIGINT its number among the events of its source: 1, 2, 3 …
            event VARCHAR an event of an own type, or one that its type's columns do not hold, whole, as JSON
            topic VARCHAR the Kafka topic
            partition INTEGER the Kafka partition
            batch BIGINT the batch's number in its log
            sequence BIGINT the number of its statement, for `custody show LOG/SEQUENCE`
            day DATE the day on which its statement was sealed
        """),
    ),
    View(
        "sources",
        "one row for each source that numbers its events. What is not archived, has expired, or was left out by"
        " `--since` and `--until` is missing here; the nightly audit says what was lost (`source-gap`)",
        _columns("""
            source VARCHAR the process that emitted: `service/instance/pid-start`
            first BIGINT its lowest number; if that is not 1, earlier ones are missing, and not counted in `missing`
            last BIGINT its highest number
            events BIGINT how many events name it
            missing BIGINT how many numbers between `first` and `last` are missing
            holes BIGINT in how many places they are missing
            repeats BIGINT how many events have a number that another event of the source has
            started TIMESTAMP when it started: the time of its event `emitter_started`
            stopped TIMESTAMP when it stopped: the time of its event `emitter_stopped`
            first_time TIMESTAMP the earliest time of its events
            last_time TIMESTAMP the latest time of its events
            silent_since TIMESTAMP the same, if it has not stopped: what it emitted later is lost, or not archived yet
        """),
    ),
    View(
        "detections",
        "one row for each alert of custody's rules, as the last archived event about it says. Whoever may write to"
        " Kafka can write such an event too",
        _columns("""
            alert_id VARCHAR the alert; its events have it as `request_id`
            level VARCHAR how bad it is: `low`, `medium`, `high` or `critical`
            rule VARCHAR the rule's name; the events' `alert_type` is `custody.` and this
            title VARCHAR the rule's title
            subject VARCHAR whom it is about: the rule's group, as JSON
            first TIMESTAMP the time of its oldest event
            last TIMESTAMP the time of the event that completed its newest match
            matches BIGINT how many matches it has; of a storm, how many alerts
            metric DOUBLE the largest of what the rule counted or compared
            threshold DOUBLE what the rule compares it with, if it is a number
            state VARCHAR `open`; `over` once it was quiet for long enough; `storm` while a rule finds very much at once
            others BIGINT of a storm, how many alerts are recorded and not sent; else 0
            evidence VARCHAR where its first 20 events are archived, as JSON: `LOG@OFFSET`, for `custody evidence`
            advice VARCHAR what to do
            log VARCHAR the log of that last event
            offset BIGINT its offset in Kafka
        """),
    ),
    View(
        "ocsf",
        "one row for each event of the six types, as OCSF " + ocsf.SCHEMA_VERSION + ": [ocsf.md](ocsf.md) says how."
        " Conditions on `time_dt`, `day`, `log` and `offset` decide what is read",
        tuple(Column(*each) for each in ocsf.view_columns()),
    ),
    View(
        "batches",
        "one row for each batch: the events that are compressed together",
        _columns("""
            log VARCHAR the log
            sequence BIGINT the number of its statement, for `custody show LOG/SEQUENCE`
            batch BIGINT its number in the log
            first_offset BIGINT its first offset
            next_offset BIGINT the offset after its last one
            events BIGINT how many events it has
            stored BIGINT its size in bytes, as stored
            inflated BIGINT its size in bytes, inflated
            min_time TIMESTAMP the earliest time of its events
            max_time TIMESTAMP the latest time of its events
        """),
    ),
    View(
        "manifests",
        "one row for each statement that counts",
        _columns("""
            log VARCHAR the log
            sequence BIGINT its number in the log, for `custody show LOG/SEQUENCE`
            sealed_at TIMESTAMP when it was signed, by the writer's clock
            first_offset BIGINT the first offset that it accounts for
            next_offset BIGINT the offset after the last one
            events BIGINT how many events it has
            quarantined BIGINT how many records are in quarantine
            skipped BIGINT how many offsets have no record
            lost BIGINT how many offsets were lost before they could be read
            unreadable BIGINT how many records no client could decode
            passed_over BIGINT how many slots before it have no valid statement
            expired_from BIGINT the first sequence that it calls expired
            expired_to BIGINT the sequence after the last one that it calls expired
            stored BIGINT the size of its objects in bytes, as stored
            inflated BIGINT the size of its events in bytes
            kafka_time TIMESTAMP the earliest Kafka timestamp of its records
            segment VARCHAR the key of its segment
            quarantine VARCHAR the key of its quarantine object
            root VARCHAR the root of the log's tree, with this statement
            writer VARCHAR who wrote it
        """),
    ),
    View(
        "quarantined",
        "one row for each record that is no valid event",
        _columns("""
            log VARCHAR the log
            sequence BIGINT the number of its statement, for `custody show LOG/SEQUENCE`
            offset BIGINT the record's offset in Kafka
            kafka_time TIMESTAMP the record's Kafka timestamp
            error VARCHAR why it is no event
            bytes BIGINT the size of its value
        """),
    ),
    View(
        "audits",
        "one row for each signed audit, and for each record of a roll",
        _columns("""
            sequence BIGINT its number among the audits
            started_at TIMESTAMP when it began
            sealed_at TIMESTAMP when it was signed
            verdict VARCHAR `verified`, `notices`, `policy`, `incomplete`, `unverifiable` or `tampered`
            statements BIGINT how many statements it read
            events BIGINT how many events it read
            findings BIGINT how many findings it has; NULL for the record of a roll, which verifies nothing
            rejected BIGINT how many events Elasticsearch rejected; NULL if it was not asked
            covered VARCHAR which statements of each log it read, as JSON
            heads VARCHAR the head of each log, as JSON
        """),
    ),
    View(
        "findings",
        "one row for each finding of an audit",
        _columns("""
            audit BIGINT the number of the audit
            finding VARCHAR its name
            severity VARCHAR `notice`, `policy`, `incomplete`, `unverifiable` or `tampered`
            log VARCHAR the log
            sequence BIGINT the number of the statement
            through BIGINT the last number, if it is about several statements
            batch BIGINT the batch
            offset BIGINT the first offset that it is about
            byte BIGINT the position in the inflated batch, or in the object if there is no batch
            key VARCHAR the object's key
            expected VARCHAR what should be there
            found VARCHAR what is there
            accepted VARCHAR who accepted it, when and why
            count BIGINT how many findings like this were joined
            message VARCHAR what happened
            action VARCHAR what to do
        """),
    ),
    View(
        "warnings",
        "one row for each reason why the other tables may be wrong or incomplete; stderr has the same",
        _columns("""
            kind VARCHAR `unverified`: a signature was not checked. `damaged`: something is missing. \
`archived`: it must be restored first. `ignored`: it is not what was signed
            log VARCHAR the log; NULL if it is about the whole archive
            message VARCHAR what is missing, and what to do
        """),
    ),
)
"""All tables, in the order in which the help shows them."""

NAMES = tuple(view.name for view in VIEWS)
SCANNED = "_events"
"""What DuckDB reads events from: the same columns, in the order that suits it."""


def events() -> str:
    """Return the SQL that creates the view `events`."""
    columns = ", ".join(f'"{column.name}"' for view in VIEWS if view.name == "events" for column in view.columns)
    return f"CREATE TEMP VIEW events AS SELECT {columns} FROM {SCANNED}"  # noqa: S608 - all names are ours


def help_rows() -> list[tuple[str, str]]:
    """Return each table with its columns, for the help."""
    return [(view.name, ", ".join(column.name for column in view.columns)) for view in VIEWS]


def page() -> str:
    """Return docs/views.md."""
    lines = [
        "# Tables for SQL",
        "",
        "A reference, made from `custody/query/views.py`. `custody query` and `custody.connect()` have these tables.",
        "The language is DuckDB's. Times are UTC. A query verifies no contents:"
        " [querying.md](querying.md) says what it trusts.",
    ]
    for view in VIEWS:
        lines += ["", f"## {view.name}", "", f"{view.meaning[0].upper()}{view.meaning[1:]}.", ""]
        lines += ["| column | type | meaning |", "|---|---|---|"]
        lines += [f"| `{column.name}` | {column.type} | {column.meaning} |" for column in view.columns]
    return "\n".join(lines) + "\n"
