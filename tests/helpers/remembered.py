"""What rules remember after many days of many keys, made at once, and a minute of events that goes with it."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from custody.format.manifest import Batch
from custody.format.times import format_us
from custody.verify.work import Work
from tasks.detect import memory as memories
from tasks.detect import sources
from tasks.detect.memory import MEASURES, Memory
from tasks.detect.views import Events
from tests.helpers.fortnight import check, login, query

NOW: Final = datetime(2026, 4, 1, 12, 0, tzinfo=UTC).replace(tzinfo=None)
"""Until when everything is remembered. It has no zone, as in the views."""
_OF_KEYS: Final = [measure for measure in MEASURES if measure != "silence"]
_HOURS: Final = 10
"""Of each day a key is used in so many hours, around the one of `NOW`."""
_US: Final = 1_000_000


def remembered(keys: int, days: int) -> Memory:
    """Return what is remembered of keys that are used each day.

    Args:
        keys: how many.
        days: for how long.
    """
    dice = np.random.default_rng(20261129)
    hours = [
        NOW - timedelta(days=day, hours=hour)
        for day in range(days)
        for hour in range(3 if not day else -_HOURS // 2, _HOURS // 2)
    ]
    hours = sorted(hours, reverse=True)[: memories.MOST_PEAKS // (keys * len(_OF_KEYS))]
    peaks = _measures(keys, hours, dice)
    minutes = [NOW - timedelta(minutes=minute) for minute in range(1, 150)]
    minutes = minutes[: memories.MOST_MINUTES // (keys * len(_OF_KEYS))]
    of_minutes = _measures(keys, minutes, dice)
    first, last = NOW - timedelta(days=days), NOW - timedelta(minutes=1)
    networks = [(f"key-{key}", f"10.{key // 250}.{key % 250}.0/24") for key in range(keys)]
    networks += [(name, network.replace("10.", "11.", 1)) for name, network in networks]
    names = [f"key-{key}" for key in range(keys)]
    seen = {
        "kind": ["network"] * len(networks) + ["key"] * keys + ["newest"],
        "key": [name for name, _ in networks] + names + [""],
        "value": [network for _, network in networks] + [""] * (keys + 1),
        "first_seen": [first] * (len(networks) + keys) + [last],
        "last_seen": [last] * (len(networks) + keys + 1),
    }
    operations = {
        "api_key_id": names,
        "operation": ["created"] * keys,
        "time": [first] * keys,
        "log": ["shop/0"] * keys,
        "offset": list(range(keys)),
        "network": [network for _, network in networks[:keys]],
    }
    empty = memories.empty()
    return Memory(
        kept=empty.kept,
        minutes=pa.table([*of_minutes, pa.repeat(pa.scalar(False), len(of_minutes[0]))], schema=memories.MINUTES),
        peaks=pa.table(peaks, schema=memories.PEAKS),
        seen=pa.table(seen, schema=memories.SEEN),
        operations=pa.table(operations, schema=memories.OPERATIONS),
        sources=_sources(first, last, days),
    )


def _measures(keys: int, times: list[datetime], dice: np.random.Generator) -> list[Any]:
    """Return kind, key, measure, time and value of all keys and times."""
    each = keys * len(_OF_KEYS)
    rows = each * len(times)
    key = np.tile(np.repeat(np.arange(keys), len(_OF_KEYS)), len(times))
    names = pa.DictionaryArray.from_arrays(pa.array(key), [f"key-{number}" for number in range(keys)])
    measures = pa.DictionaryArray.from_arrays(
        pa.array(np.tile(np.arange(len(_OF_KEYS)), rows // len(_OF_KEYS))), _OF_KEYS
    )
    moments = np.repeat(np.array(times, dtype="datetime64[us]"), each)
    return [
        pa.repeat(pa.scalar("api_key_id"), rows),
        names.cast(pa.string()),
        measures.cast(pa.string()),
        pa.array(moments),
        pa.array(dice.integers(300, 600, rows).astype(float)),
    ]


def _sources(first: datetime, last: datetime, days: int) -> pa.Table:
    """Return the processes of four services, each of which has a new one each day."""
    rows = [
        {
            "source": f"service-{service}/one/{number}-1",
            "service": f"service-{service}",
            "first_seen": first + timedelta(days=number),
            "last_seen": last if number == days - 1 else first + timedelta(days=number + 1),
            "log": "shop/0",
            "offset": number,
            "first_seq": 1,
            "last_seq": 1_000_000,
            "missing": [],
        }
        for service in range(4)
        for number in range(days)
    ]
    return pa.Table.from_pylist(rows, schema=sources.SCHEMA)


def minute_of(count: int, keys: int, *, number: int = 0) -> list[bytes]:
    """Return the lines of the minute after `NOW`, or of a later one.

    Args:
        count: how many.
        keys: how many keys share them.
        number: which minute.
    """
    return list(_lines(count, keys, number))


def decoded(lines: list[bytes], *, number: int = 0) -> Events:
    """Return the lines of a minute as events for a step."""
    count = len(lines)
    payload = b"\n".join(lines) + b"\n"
    first = 1_000_000 + number * count
    batch = Batch(0, first, first + count, count, 0, 0, len(payload), "", "", "", None, None)
    events = Events()
    events.add(Work("shop/0", 0, first, first + count, None, (batch,), {}, None, ()), batch, payload)
    return events


def _lines(count: int, keys: int, number: int) -> Iterator[bytes]:
    dice = random.Random(number)
    begin = int(NOW.replace(tzinfo=UTC).timestamp()) + 60 * number
    for index in range(count):
        key = dice.randrange(keys)
        name, address = f"key-{key}", f"10.{key // 250}.{key % 250}.5"
        kind = dice.random()
        fields: dict[str, Any]
        if kind < 0.7:
            fields = query(name, address, complexity=dice.randrange(1, 500), rows=dice.randrange(500))
        elif kind < 0.9:
            fields = check(name, address, granted=dice.random() < 0.95, number=index)
        else:
            fields = login(name, address, works=dice.random() < 0.98, age=90)
        service = index % 4
        fields |= {
            "timestamp": format_us(begin * _US + index * 60 * _US // count),
            "request_id": f"{index:032x}",
            "event_id": f"{number:08x}{index:024x}",
            "source": f"service-{service}/one/29-1",
            "source_seq": 1_000_001 + (number * count + index) // 4,
        }
        yield msgspec.json.encode(fields)
