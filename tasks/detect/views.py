"""The named views that rules read, filled from archived batches: for live runs, backtests and tests in rule files.

`events` has the columns of `custody query` that come from an event, and:

- `time`: the event's own time, in UTC.
- `log`, `offset`: where it is archived. Events of one time are in the order of these.
- `network`: the network of `client_ip`, as `192.0.2.0/24` or `2001:db8:1::/48`. An IPv4 address in IPv6 is IPv4.
- `address`: `client_ip` as 32 hexadecimal digits, IPv4 as mapped into IPv6, so that ranges of networks compare as text.
- `event`: the whole event as JSON, whatever its type. Half of a surrogate pair, which DuckDB refuses, is U+FFFD in it.

Events that a rule of ours has made (`alert_type` begins with `custody.`) are left out: no rule reads its own alerts. Of
events that were sent again, with the same `event_id` and byte for byte the same, only the first one is there.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from itertools import islice
from typing import Any, Final

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from custody.format.layout import Log, parse_log_text
from custody.format.lines import without_half_characters
from custody.format.manifest import Batch
from custody.format.offsets import line_offsets
from custody.query import tables
from custody.verify.work import Work

NEW: Final = "all_events"
"""The table of the events that were added. `events` may have more than these: see `make_events`."""
MEMORY: Final = "1GB"
"""What DuckDB may use for rules. It moves nothing to disk."""
AND_KEPT: Final = f"SELECT * FROM kept UNION ALL SELECT * FROM {NEW}"
"""What a rule with a window sees: see `tasks.detect.memory`."""
OWN: Final = "custody."
"""How the `alert_type` of events begins that rules of ours have made."""
COLUMNS: Final[Mapping[str, str]] = {
    **{name: {pa.bool_(): "BOOLEAN", pa.int64(): "BIGINT", pa.float64(): "DOUBLE"}.get(kind, "VARCHAR")
       for name, (kind, _) in tables.FIELDS.items()},
    "time": "TIMESTAMP",
    "log": "VARCHAR",
    "offset": "BIGINT",
    "network": "VARCHAR",
    "address": "VARCHAR",
    "event": "VARCHAR",
}  # fmt: skip
"""The columns of `events`, and their types in DuckDB."""
_MAPPED: Final = 0xFFFF << 32
_LINES = pa.schema([("log", pa.string()), ("offset", pa.int64()), ("event", pa.string())])
_ADDRESSES = pa.schema([("client_ip", pa.string()), ("address", pa.string()), ("network", pa.string())])


class Events:
    """Collects events, and makes the view `events` of them."""

    def __init__(self) -> None:
        """Begin without events."""
        self._rows: dict[Log, tables.Rows] = {}
        self._lines: list[pa.Table] = []
        self.count = 0

    def add(self, work: Work, batch: Batch, payload: bytes) -> None:
        """Add a batch of a statement: JSON lines, each an event. So this is a sink of `custody.verify.contents`."""
        log = parse_log_text(work.log)
        if log is None:
            return
        self._rows.setdefault(log, tables.Rows(log)).add(work, batch, payload)
        # DuckDB would refuse the event, and with it each query over all of them: an attack could hide itself.
        lines = without_half_characters(payload).split(b"\n")[:-1]
        offsets = list(islice(line_offsets(batch, work.unlined), len(lines)))
        # Bytes that are no UTF-8 are no events: only a wrong statement has them.
        texts = [line.decode("utf-8", "replace") for line in lines[: len(offsets)]]
        columns = [pa.repeat(pa.scalar(str(log)), len(texts)), pa.array(offsets, pa.int64()), pa.array(texts)]
        self._lines.append(pa.Table.from_arrays(columns, schema=_LINES))
        self.count += len(texts)

    def own(self) -> Iterator[str]:
        """Yield the lines that may be events of rules of ours: they have `OWN` at the begin of a text."""
        for lines in self._lines:
            texts = lines.column("event")
            yield from texts.filter(pc.match_substring(texts, f'"{OWN}')).to_pylist()

    def create(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the view `events` of what was added. What it had before is no longer there."""
        made = [rows.take() for rows in self._rows.values()]
        rows = pa.concat_tables(made) if made else tables.SCHEMA.empty_table()
        lines = pa.concat_tables(self._lines) if self._lines else _LINES.empty_table()
        connection.register("event_rows", rows.drop_columns(["event"]))
        connection.register("event_lines", lines)
        connection.register("event_addresses", _addresses(rows.column("client_ip").unique().to_pylist()))
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {NEW} AS SELECT {columns} FROM ("
            " SELECT event_rows.*, event_lines.event, event_addresses.address, event_addresses.network"
            ' FROM event_rows JOIN event_lines USING (log, "offset")'
            " LEFT JOIN event_addresses USING (client_ip)"
            f" WHERE alert_type IS NULL OR NOT starts_with(alert_type, '{OWN}'))"
        )
        _drop_repeats(connection)
        make_events(connection, f"SELECT * FROM {NEW}")
        for name in ("event_rows", "event_lines", "event_addresses"):
            connection.unregister(name)


def connect() -> duckdb.DuckDBPyConnection:
    """Return a connection for rules: their SQL reaches no file, no network, no variable of ours, and no setting."""
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "memory_limit": MEMORY,
            "enable_external_access": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        },
    )
    for setting in ("TimeZone = 'UTC'", "python_enable_replacements = false", "lock_configuration = true"):
        connection.execute(f"SET {setting}")
    return connection


def spans(connection: duckdb.DuckDBPyConnection, longest: timedelta) -> Iterator[datetime]:
    """Cut the events that were added into spans of time. Before each is yielded, the views are made of it.

    Args:
        connection: has the events.
        longest: how long a span may be.

    Yields:
        The time of the newest event so far.
    """
    first, last = connection.execute(f"SELECT min(time), max(time) FROM {NEW}").fetchall()[0]
    if first is None or last - first < longest:
        yield from () if last is None else (last,)
        return
    seconds = int(longest.total_seconds())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE every_event AS SELECT *, time_bucket(INTERVAL {seconds} SECONDS, time) AS span"
        f" FROM {NEW}"
    )
    for (span,) in connection.execute("SELECT DISTINCT span FROM every_event ORDER BY span").fetchall():
        sql = f"CREATE OR REPLACE TEMP TABLE {NEW} AS SELECT * EXCLUDE (span) FROM every_event WHERE span = $span"
        connection.execute(sql, {"span": span})
        make_events(connection, f"SELECT * FROM {NEW}")
        yield connection.execute(f"SELECT max(time) FROM {NEW}").fetchall()[0][0]
    connection.execute("DROP TABLE every_event")


def drop_known(connection: duckdb.DuckDBPyConnection) -> None:
    """Remove the events that were added and are, sent before, in the view `kept`."""
    connection.execute(
        f"DELETE FROM {NEW} USING kept WHERE {NEW}.event_id = kept.event_id AND {NEW}.event = kept.event"
        f' AND (kept.log, kept."offset") <> ({NEW}.log, {NEW}."offset")'
    )


def _drop_repeats(connection: duckdb.DuckDBPyConnection) -> None:
    counts = connection.execute(f"SELECT count(event_id), count(DISTINCT event_id) FROM {NEW}").fetchall()[0]
    if counts[0] == counts[1]:
        return
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {NEW} AS FROM {NEW} QUALIFY event_id IS NULL"
        ' OR row_number() OVER (PARTITION BY event_id, event ORDER BY log, "offset") = 1'
    )


def make_events(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Make the view `events` of a query that gives its columns, in their order."""
    connection.execute(f"CREATE OR REPLACE TEMP VIEW events AS {query}")


def of_mappings(connection: duckdb.DuckDBPyConnection, events: Sequence[Mapping[str, Any]]) -> None:
    """Make the view `events` of events that are archived nowhere, such as those in the tests of a rule file."""
    collected(events).create(connection)


def collected(events: Sequence[Mapping[str, Any]], first: int = 0) -> Events:
    """Return events that are archived nowhere.

    Args:
        events: the events, in the order in which they would be archived.
        first: the offset of the first one.
    """
    payload = b"".join(json.dumps(event).encode() + b"\n" for event in events)
    count = len(events)
    batch = Batch(0, first, first + count, count, 0, 0, len(payload), "", "", "", None, None)
    made = Events()
    made.add(Work("test/0", 0, first, first + count, None, (batch,), {}, None, ()), batch, payload)
    return made


def plain(time: datetime) -> datetime:
    """Return a time as the views have it: in UTC, and without a zone."""
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)


def address_of(text: str) -> str | None:
    """Return an address as 32 hexadecimal digits, IPv4 as mapped into IPv6; None if it is not an address."""
    parsed = _parse(text)
    return None if parsed is None else f"{int(parsed):032x}"


def network_of(text: str) -> str | None:
    """Return the network of an address: /24 of IPv4, /48 of IPv6; None if it is not an address."""
    parsed = _parse(text)
    if parsed is None:
        return None
    mapped = parsed.ipv4_mapped
    return str(ip_network(f"{mapped}/24" if mapped else f"{parsed}/48", strict=False))


@lru_cache(maxsize=65_536)
def _parse(text: str) -> IPv6Address | None:
    try:
        parsed = ip_address(text)
    except ValueError:
        return None
    if isinstance(parsed, IPv6Address):
        # A zone is of one machine only.
        return IPv6Address(int(parsed))
    return IPv6Address(_MAPPED | int(parsed))


def _addresses(texts: Iterable[str | None]) -> Any:
    known = [(text, address_of(text), network_of(text)) for text in texts if text is not None]
    columns = zip(*known, strict=True) if known else ((), (), ())
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=_ADDRESSES)
