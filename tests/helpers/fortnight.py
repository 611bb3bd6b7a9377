"""Four weeks of a GraphQL shop's audit events, the same for the same seed: two to learn from, and a fortnight to judge.

It has what an ordinary shop has: people who work by day and on weekdays, from an office, from home and with a phone;
programs that ask all day, and one that asks a lot each night; keys that are made, rotated and revoked; passwords that
are mistyped, a client with an old key; approved changes; deployments and a crash; events that are late or doubled.
`Shop.known_false_positives` is what the rules' descriptions say that they cannot tell from an attack.

Times are seconds after `BEGIN`, a Monday. What is planted (`tests.helpers.planted`) changes no other event.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from custody.format.manifest import Batch
from custody.format.times import format_time
from custody.verify.work import Work
from tasks.detect.views import Events

SEED: Final = 20261129
BEGIN: Final = datetime(2026, 3, 2, tzinfo=UTC)
MINUTE: Final = 60.0
HOUR: Final = 3_600.0
DAY: Final = 86_400.0
LOGS: Final = 2
SHOP, ACCOUNTS, EXPORT, WEBHOOKS = "shop", "accounts", "export", "webhooks"
_INSTANCES: Final[Mapping[str, int]] = {SHOP: 2, ACCOUNTS: 1, EXPORT: 1, WEBHOOKS: 1}
_BY_DAY: Final = (1, 1, 0, 0, 0, 1, 3, 8, 20, 30, 32, 28, 20, 26, 30, 28, 24, 18, 12, 10, 9, 7, 4, 2)
"""How often people begin to work in an hour of a weekday, in relation to each other."""
_BY_WEEKEND: Final = (1, 1, 1, 0, 0, 0, 1, 2, 4, 6, 8, 8, 7, 7, 8, 8, 7, 7, 8, 8, 7, 5, 3, 2)


class Made(NamedTuple):
    """An event: when it happened, the service that emits it, and its fields but those that each has."""

    time: float
    service: str
    fields: Mapping[str, Any]


class Sent(NamedTuple):
    """An archived event, and when it was archived."""

    archived: float
    time: float
    log: int
    line: bytes


@dataclass(frozen=True, slots=True)
class Planted:
    """What somebody did, and which alert must come of it.

    Attributes:
        rule: the rule's name.
        group: the group of its alert.
        events: the events of it.
        silenced: a service that emits nothing from a time to another.
        lost: a service that loses as many events from a time on.
    """

    rule: str
    group: tuple[tuple[str, str], ...]
    events: tuple[Made, ...] = ()
    silenced: tuple[str, float, float] | None = None
    lost: tuple[str, float, int] | None = None

    @property
    def begin(self) -> float:
        """When it begins."""
        times = [event.time for event in self.events]
        return min(times + [span[1] for span in (self.silenced, self.lost) if span])

    @property
    def end(self) -> float:
        """When it is over."""
        ends = [event.time for event in self.events]
        ends += [self.silenced[2]] if self.silenced else []
        return max(ends + ([self.lost[1] + HOUR] if self.lost else []))


@dataclass(slots=True)
class Key:
    """An API key: who has it, where it is used, and what is usual for it."""

    name: str
    addresses: list[str]
    begin: float = 0.0
    end: float = float("inf")
    made: float = 0.0
    version: int = 1
    complexity: float = 80.0
    aliases: int = 2
    rows: float = 30.0
    shift: int = 0


def time_of(seconds: float) -> datetime:
    """Return a time of the fortnight, as the views have it: UTC, without a zone."""
    return (BEGIN + timedelta(seconds=seconds)).replace(tzinfo=None)


def query(key: str, address: str, *, complexity: int = 40, aliases: int = 1, rows: int = 10) -> dict[str, Any]:
    """Return the fields of a query."""
    return {
        "event_type": "query_executed",
        "api_key_id": key,
        "client_ip": address,
        "query_hash": f"{complexity % 17:032x}",
        "complexity": complexity,
        "execution_time": 3.5,
        "result_rows": rows,
        "status": "success",
        "aliases": aliases,
    }


def login(
    key: str | None, address: str, *, works: bool = True, age: int | None = None, version: int = 1
) -> dict[str, Any]:
    """Return the fields of an authentication."""
    return {
        "event_type": "auth_attempt",
        "api_key_id": key,
        "client_ip": address,
        "status": "success" if works else "failure",
        "failure_reason": None if works else "signature does not match",
        "key_version": version if works else None,
        "key_age_days": age,
    }


def check(key: str, address: str, *, granted: bool = True, number: int = 0) -> dict[str, Any]:
    """Return the fields of a permission that is asked for."""
    return {
        "event_type": "authz_check",
        "api_key_id": key,
        "client_ip": address,
        "resource_type": "Order",
        "resource_id": f"order-{number}",
        "field_name": None,
        "permission_granted": granted,
    }


def operation(key: str, address: str, kind: str) -> dict[str, Any]:
    """Return the fields of what is done to a key."""
    return {
        "event_type": "api_key_operation",
        "api_key_id": key,
        "client_ip": address,
        "operation": kind,
        "permissions": ["orders:read"],
        "tier": "team",
    }


def change(resource: str, who: str, status: str) -> dict[str, Any]:
    """Return the fields of a change of a setting."""
    return {
        "event_type": "config_change",
        "api_key_id": None,
        "client_ip": "10.0.0.9",
        "resource": resource,
        "operation": "updated",
        "changed_by": who,
        "changes": {"limit": [1, 2]},
        "approval_status": status,
    }


@dataclass(slots=True)
class Shop:
    """The shop and its keys.

    Attributes:
        days: how many days there are.
        learnt: how many of them are there to learn from.
        count: how many keys there are at the beginning.
        seed: of its random numbers.
        known_false_positives: rule and group of alerts that the rules' descriptions announce, after `learnt`.
    """

    days: int = 28
    learnt: int = 14
    count: int = 200
    seed: int = SEED
    keys: list[Key] = field(default_factory=list)
    known_false_positives: list[tuple[str, tuple[tuple[str, str], ...], float]] = field(default_factory=list)
    _dice: random.Random = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Give each key its owner's habits."""
        self._dice = random.Random(self.seed)
        programs = max(self.count // 10, 1)
        people = self.count - programs - 5
        self.keys = [self._person(number) for number in range(people)]
        self.keys += [self._program(f"program-{number}", number) for number in range(programs)]
        self.keys += [self._program(f"export-{number}", 100 + number, rows=4_000.0) for number in range(4)]
        self.keys.append(self._program("sync-0", 120))

    def ordinary(self) -> list[Made]:
        """Return all that happens, in no order."""
        made: list[Made] = []
        for key in list(self.keys):
            kind = key.name.partition("-")[0]
            work = {"program": self._polls, "export": self._exports, "sync": self._syncs}.get(kind, self._works)
            made += work(key)
        made += self._comes_and_goes()
        made += self._moves()
        made += self._changes()
        made += self._webhooks()
        return made

    def _person(self, number: int) -> Key:
        dice = self._dice
        # Three keys are used behind one office's address: five are what the rule about many keys looks for.
        office = f"198.18.{number // 3}.7"
        home = f"2001:db8:{number:x}:1::{number % 9 + 1}" if number % 4 == 0 else f"100.64.{number}.20"
        phones = [f"100.{80 + number % 9}.{number // 9 + 60 * at}.{number % 250 + 1}" for at in range(number % 3 + 1)]
        return Key(
            f"person-{number}",
            [office, office, office, home, *phones],
            made=-dice.uniform(1, 300) * DAY,
            complexity=dice.uniform(20, 200),
            aliases=dice.randrange(1, 6),
            rows=dice.uniform(5, 120),
            shift=dice.choice((-2, -1, 0, 0, 0, 0, 1, 2, 5)),
        )

    def _program(self, name: str, number: int, rows: float = 50.0) -> Key:
        made = -self._dice.uniform(1, 300) * DAY
        return Key(name, [f"10.20.{number}.5"], made=made, complexity=120.0, rows=rows)

    def _age(self, key: Key, time: float) -> int:
        return int((time - key.made) // DAY)

    def _login(self, key: Key, time: float, address: str, *, works: bool = True) -> Made:
        age = self._age(key, time) if works else None
        return Made(time, ACCOUNTS, login(key.name, address, works=works, age=age, version=key.version))

    def _query(self, key: Key, time: float, address: str) -> Made:
        dice = self._dice
        # Most queries are alike, and few are large: a log-normal distribution.
        complexity = int(key.complexity * dice.lognormvariate(0, 0.45)) + 1
        rows = int(key.rows * dice.lognormvariate(0, 0.6))
        return Made(
            time,
            SHOP,
            query(key.name, address, complexity=complexity, aliases=dice.randrange(key.aliases + 1), rows=rows),
        )

    def _works(self, key: Key) -> Iterator[Made]:
        """Yield the sessions of a person."""
        dice = self._dice
        networks = list(dict.fromkeys(key.addresses))
        turn = 0
        for day in range(self.days):
            weekend = day % 7 >= 5
            sessions = dice.choice((0, 0, 0, 1)) if weekend else dice.choice((0, 1, 2, 2, 3, 4))
            for _ in range(sessions):
                hour = dice.choices(range(24), _BY_WEEKEND if weekend else _BY_DAY)[0] + key.shift
                begin = day * DAY + hour * HOUR + dice.uniform(0, HOUR)
                if not key.begin <= begin < key.end - HOUR:
                    continue
                # Within the first days each place is used, so that the later ones are not new.
                address = networks[turn] if turn < len(networks) else dice.choice(key.addresses)
                turn += 1
                yield from self._session(key, begin, address)

    def _session(self, key: Key, time: float, address: str) -> Iterator[Made]:
        dice = self._dice
        chance = dice.random()
        # Some mistype; and a client with an old key tries eight times, which is less than the rules look for.
        for _ in range(dice.randrange(1, 4) if chance < 0.03 else 8 if chance < 0.032 else 0):
            yield self._login(key, time, address, works=False)
            time += dice.uniform(4, 30)
        yield self._login(key, time, address)
        for _ in range(dice.randrange(3, 16)):
            time += dice.expovariate(1 / 20)
            if dice.random() < 0.75:
                yield self._query(key, time, address)
            else:
                granted = dice.random() >= 0.04
                yield Made(time, SHOP, check(key.name, address, granted=granted, number=dice.randrange(900)))

    def _polls(self, key: Key) -> Iterator[Made]:
        """Yield what a program asks, all day, and its login of each day."""
        dice = self._dice
        time = dice.uniform(0, 600)
        while time < self.days * DAY:
            if time % DAY < 600:
                yield self._login(key, time, key.addresses[0])
            yield self._query(key, time + 1, key.addresses[0])
            time += dice.uniform(400, 900)

    def _exports(self, key: Key) -> Iterator[Made]:
        """Yield a night's export: quiet by day."""
        dice = self._dice
        for day in range(self.days):
            time = day * DAY + 2 * HOUR + dice.uniform(0, 300)
            yield self._login(key, time, key.addresses[0])
            for _ in range(dice.randrange(80, 110)):
                time += dice.expovariate(1 / 4)
                yield self._query(key, time, key.addresses[0])._replace(service=EXPORT)

    def _syncs(self, key: Key) -> Iterator[Made]:
        """Yield what a program asks that has never been told that it may not: many denials, at the same hour."""
        dice = self._dice
        for day in range(self.days):
            begin = day * DAY + 14 * HOUR + 20 * MINUTE + dice.uniform(0, 5)
            yield self._login(key, begin, key.addresses[0])
            for number in range(40):
                yield Made(begin + 1 + number, SHOP, check(key.name, key.addresses[0], granted=False, number=number))

    def _comes_and_goes(self) -> Iterator[Made]:
        """Yield keys that are made, rotated by their owners, and revoked."""
        dice = self._dice
        admin = "10.0.0.9"
        for day in range(0, self.days - 1, 2):
            time = day * DAY + 10 * HOUR + dice.uniform(0, HOUR)
            key = self._person(300 + day)
            key.begin = key.made = time
            yield Made(time, ACCOUNTS, operation(key.name, admin, "created"))
            if day % 4 == 0:
                # After five days it is revoked. Its client has not heard of it yet, and tries three times.
                key.end = time + 5 * DAY
                yield Made(key.end, ACCOUNTS, operation(key.name, admin, "revoked"))
                for number in range(3):
                    yield self._login(key, key.end + HOUR + 40 * number, key.addresses[0], works=False)
            yield from (event for event in self._works(key) if event.time < self.days * DAY)
        for day in range(1, self.days - 1, 3):
            key = self.keys[day]
            time = day * DAY + 11 * HOUR + dice.uniform(0, HOUR)
            key.made, key.version = time, 2
            yield Made(time, ACCOUNTS, operation(key.name, key.addresses[0], "rotated"))
            yield from self._session(key, time + 120, key.addresses[0])

    def _moves(self) -> Iterator[Made]:
        """Yield the first sessions in a new office: nobody but their owners can tell these from a stolen key."""
        for number, day in ((40, 16), (41, 22)):
            if day >= self.days:
                continue
            key, address = self.keys[number], f"198.19.{number}.7"
            begin = day * DAY + 9 * HOUR + self._dice.uniform(0, HOUR)
            self.known_false_positives.append(("new-network-of-key", (("api_key_id", key.name),), begin))
            for later in range(self.days - day):
                yield from self._session(key, begin + later * DAY, address)

    def _changes(self) -> Iterator[Made]:
        dice = self._dice
        for day in range(self.days):
            for _ in range(dice.randrange(3)):
                time = day * DAY + dice.uniform(9, 17) * HOUR
                status = dice.choice(("approved", "Approved", "auto_approved"))
                yield Made(time, ACCOUNTS, change(dice.choice(("limits", "cors", "tls")), "ada", status))
            for _ in range(dice.randrange(4)):
                fields = {
                    "event_type": "security_event",
                    "api_key_id": f"program-{dice.randrange(3)}",
                    "client_ip": "10.20.1.5",
                    "severity": "low",
                    "alert_type": "rate_limit",
                    "details": {"limit": 1000, "seen": 1001},
                    "action_taken": "throttled",
                }
                yield Made(day * DAY + dice.uniform(0, 24) * HOUR, SHOP, fields)

    def _webhooks(self) -> Iterator[Made]:
        """Yield events of an own type: each few minutes by day, now and then by night."""
        dice = self._dice
        time = 0.0
        while time < self.days * DAY:
            by_day = 7 <= time % DAY / HOUR < 22
            yield Made(time, WEBHOOKS, {"event_type": "webhook_received", "shop": "eu", "tries": dice.randrange(3)})
            time += dice.uniform(120, 420) if by_day else dice.uniform(1_200, 3_600)


class _Process(NamedTuple):
    source: str
    begin: float
    end: float
    crashes: bool


def sent(shop: Shop, planted: Iterable[Planted] = (), *, doubled: float = 0.002) -> list[Sent]:
    """Return what is archived, in that order.

    Args:
        shop: its ordinary events.
        planted: what happens besides.
        doubled: which share of events comes twice.
    """
    planted = list(planted)
    made = shop.ordinary() + [event for each in planted for event in each.events]
    made = [event for event in made if 0 <= event.time < shop.days * DAY]
    for each in planted:
        if each.silenced:
            service, begin, end = each.silenced
            made = [event for event in made if event.service != service or not begin <= event.time < end]
    lost = {each.lost[0]: each.lost for each in planted if each.lost}
    processes = {(service, number): _processes(shop, service, number) for service in _INSTANCES
                 for number in range(_INSTANCES[service])}  # fmt: skip
    lines = list(_numbered(made, processes, lost, shop.days * DAY))
    delivered = [copy for time, source, line in lines for copy in _delivered(time, source, line, doubled)]
    return sorted(delivered)


def source_at(shop: Shop, service: str, number: int, time: float) -> str:
    """Return the source that an instance of a service is at a time."""
    return next(process.source for process in _processes(shop, service, number) if time < process.end)


def _processes(shop: Shop, service: str, number: int) -> list[_Process]:
    """Return the processes of an instance: a deployment each three or four days, and now and then a crash."""
    dice = random.Random(f"{shop.seed} {service} {number}")
    processes, time = [], 0.0
    while time < shop.days * DAY:
        day = int(time // DAY) + dice.randrange(3, 5)
        end = day * DAY + dice.uniform(9, 16) * HOUR
        start = int((BEGIN + timedelta(seconds=time)).timestamp() * 1_000_000)
        processes.append(_Process(f"{service}/{service}-{number}/17-{start}", time, end, dice.random() < 0.15))
        time = end + dice.uniform(3, 9)
    return processes


def _numbered(
    made: list[Made],
    processes: Mapping[tuple[str, int], Sequence[_Process]],
    lost: Mapping[str, tuple[str, float, int]],
    until: float,
) -> Iterator[tuple[float, str, bytes]]:
    """Yield time, source and line of each event: a source numbers its events in the order in which they happen."""
    begins = {instance: [process.begin for process in its] for instance, its in processes.items()}
    chosen: list[tuple[float, str, Mapping[str, Any]]] = []
    for index, (time, service, fields) in enumerate(made):
        instance = (service, index % _INSTANCES[service])
        process = processes[instance][bisect_right(begins[instance], time) - 1]
        # While an instance starts anew, requests wait for a few seconds.
        chosen.append((min(time, process.end - 0.1), process.source, fields))
    for its in processes.values():
        for process in its:
            chosen.append((process.begin, process.source, {"event_type": "emitter_started"}))
            if not process.crashes and process.end < until:
                chosen.append((process.end, process.source, {"event_type": "emitter_stopped", "dropped": 0, "lost": 0}))
    chosen.sort(key=lambda each: (each[0], each[1], each[2]["event_type"] != "emitter_started"))
    numbers: dict[str, int] = {}
    gone = {service: count for service, (_, _, count) in lost.items()}
    for order, (time, source, fields) in enumerate(chosen):
        number = numbers[source] = numbers.get(source, 0) + 1
        service = source.partition("/")[0]
        if gone.get(service) and time >= lost[service][1]:
            gone[service] -= 1
            continue
        event = {
            **fields,
            "timestamp": format_time(BEGIN + timedelta(microseconds=int(time * 1_000_000))),
            "request_id": f"request-{order}",
            "event_id": f"{order:032x}",
            "source": source,
            "source_seq": number,
        }
        yield time, source, msgspec.json.encode(event)


def _delivered(time: float, source: str, line: bytes, doubled: float) -> Iterator[Sent]:
    """Yield an event as it is archived: most within a minute, some minutes later, some twice."""
    dice = random.Random(line)
    log = sum(source.encode()) % LOGS
    late = dice.uniform(60, 600) if dice.random() < 0.01 else 0.0
    archived = time + dice.uniform(1, 50) + late
    yield Sent(archived, time, log, line)
    if dice.random() < doubled:
        yield Sent(archived + dice.uniform(1, 600), time, log, line)


def events_of(archived: Sequence[Sent], offsets: list[int]) -> Events:
    """Return events for a step.

    Args:
        archived: what is new.
        offsets: of each log the next offset. They are moved on.
    """
    events = Events()
    for log in range(LOGS):
        lines = [each.line for each in archived if each.log == log]
        if not lines:
            continue
        first, count = offsets[log], len(lines)
        offsets[log] += count
        payload = b"\n".join(lines) + b"\n"
        batch = Batch(0, first, first + count, count, 0, 0, len(payload), "", "", "", None, None)
        events.add(Work(f"shop/{log}", 0, first, first + count, None, (batch,), {}, None, ()), batch, payload)
    return events


def cuts(
    end: float, planted: Iterable[Planted], *, quiet: float = 11 * HOUR, fine: float = 150.0, few: int = 2
) -> list[float]:
    """Return when steps end: long ones while nothing happens, short ones where something is planted.

    Args:
        end: until when.
        planted: what is planted.
        quiet: seconds of long steps. Rules in SQL take 12 hours of events at most.
        fine: seconds of short ones.
        few: how many cuts there are around the last event of each of what is planted.
    """
    ends = {number * quiet for number in range(1, int(end // quiet) + 1)}
    for each in planted:
        last = each.events[-1].time if each.events else each.begin
        ends |= {last + (number - few / 2 + 0.5) * fine for number in range(few)}
    return sorted(each for each in ends if each < end)


def groups_of(planted: Iterable[Planted]) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    """Return which alerts must come, in order."""
    return sorted((each.rule, each.group) for each in planted)
