"""What attackers do in `tests.helpers.fortnight`, written from what the rules' files say in words, not from their SQL.

Each is made for one rule, and takes care to be nothing that another rule looks for: keys are used from where they
always are, failures are too few for the rules beside, and so on. Where the words say "within a minute" or "within five
minutes", the events lie on both sides of a full one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.helpers.fortnight import (
    ACCOUNTS,
    DAY,
    HOUR,
    MINUTE,
    SHOP,
    WEBHOOKS,
    Key,
    Made,
    Planted,
    Shop,
    change,
    check,
    login,
    operation,
    query,
    source_at,
)

_Group = tuple[tuple[str, str], ...]


def attacks(shop: Shop) -> list[Planted]:
    """Return one attack for each rule, spread over the days after those to learn from."""
    keys = {key.name: key for key in shop.keys}
    made: list[Planted] = []
    span = shop.days - shop.learnt - 2
    for number, (rule, plant) in enumerate(_ATTACKS.items()):
        day = shop.learnt + 1 + number * span // len(_ATTACKS)
        # A weekend's day would do as well. But people are in their offices on the others.
        time = day * DAY + (9.5 + number * 5 % 7) * HOUR
        planted = plant(rule, time, keys)
        if planted.lost:
            service, time, _ = planted.lost
            planted = replace(planted, group=(("source", source_at(shop, service, 0, time)),))
        made.append(planted)
    return made


def _key(name: str) -> _Group:
    return (("api_key_id", name),)


def _address(address: str) -> _Group:
    return (("client_ip", address),)


def _each(begin: float, every: float, count: int) -> list[float]:
    return [begin + number * every for number in range(count)]


def _failed_logins_by_key(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """Ten failures in four minutes, from two addresses, on both sides of a full five minutes."""
    name = "person-75"
    times = _each(time - 2 * MINUTE, 26, 10)
    events = [
        Made(at, ACCOUNTS, login(name, f"203.0.113.{10 + number % 2}", works=False)) for number, at in enumerate(times)
    ]
    return Planted(rule, _key(name), tuple(events))


def _failed_logins_by_address(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """Twenty failures in less than five minutes that name no key."""
    address = "203.0.113.20"
    events = [Made(at, ACCOUNTS, login(None, address, works=False)) for at in _each(time - 2 * MINUTE, 14, 20)]
    return Planted(rule, _address(address), tuple(events))


def _failures_then_success(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """Ten failures in nine minutes at a person's home, and a success 20 minutes later."""
    key = keys["person-78"]
    address = key.addresses[3]
    events = [Made(at, ACCOUNTS, login(None, address, works=False)) for at in _each(time, 55, 10)]
    events.append(Made(time + 29 * MINUTE, ACCOUNTS, login(key.name, address, age=90)))
    return Planted(rule, _address(address), tuple(events))


def _many_keys(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """Five keys in nine minutes, none of which works."""
    address = "203.0.113.30"
    times = _each(time - 4 * MINUTE, 130, 5)
    names = [f"person-{90 + number}" for number in range(5)]
    events = [Made(at, ACCOUNTS, login(name, address, works=False)) for at, name in zip(times, names, strict=True)]
    return Planted(rule, _address(address), tuple(events))


def _denied(name: str, address: str, begin: float, count: int) -> tuple[Made, ...]:
    return tuple(
        Made(at, SHOP, check(name, address, granted=False, number=number))
        for number, at in enumerate(_each(begin, 1, count))
    )


def _denials_above_usual(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """Thirty denials within a minute of the clock: fewer than the other rule looks for."""
    key = keys["person-60"]
    return Planted(rule, _key(key.name), _denied(key.name, key.addresses[0], time + 15, 30))


def _many_denials(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """Fifty-five denials in a minute of a program that has forty at this hour of each day."""
    key = keys["sync-0"]
    begin = time // DAY * DAY + 14 * HOUR + 40 * MINUTE + 1
    return Planted(rule, _key(key.name), _denied(key.name, key.addresses[0], begin, 55))


def _queries_above_usual(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """A hundred small queries within a minute of the clock."""
    key = keys["person-63"]
    events = [Made(at, SHOP, query(key.name, key.addresses[0])) for at in _each(time + 5, 0.5, 100)]
    return Planted(rule, _key(key.name), tuple(events))


def _large_query(name: str, **size: int) -> Callable[[str, float, dict[str, Key]], Planted]:
    def plant(rule: str, time: float, keys: dict[str, Key]) -> Planted:
        """Return a single query that is large in one way."""
        key = keys[name]
        return Planted(rule, _key(name), (Made(time, SHOP, query(name, key.addresses[0], **size)),))

    return plant


def _new_network(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """A stolen key is used once, for an ordinary query."""
    return Planted(rule, _key("person-96"), (Made(time, SHOP, query("person-96", "203.0.113.40")),))


def _revoked_key(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """A key that was revoked nine days ago works, where its owner always was."""
    key = keys["person-99"]
    key.end = time - 9 * DAY
    events = [
        Made(key.end, ACCOUNTS, operation(key.name, "10.0.0.9", "revoked")),
        Made(time, SHOP, query(key.name, key.addresses[0])),
    ]
    return Planted(rule, _key(key.name), tuple(events))


def _overdue_key(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """A login with a key of 365 days."""
    key = keys["person-105"]
    return Planted(rule, _key(key.name), (Made(time, ACCOUNTS, login(key.name, key.addresses[0], age=365)),))


def _unapproved(rule: str, time: float, _: dict[str, Key]) -> Planted:
    group = (("resource", "tls"), ("changed_by", "mallory"))
    return Planted(rule, group, (Made(time, ACCOUNTS, change("tls", "mallory", "Pending")),))


def _introspection(rule: str, time: float, keys: dict[str, Key]) -> Planted:
    """A person asks for the schema at home."""
    key = keys["person-108"]
    address = key.addresses[3]
    event: dict[str, Any] = {**query(key.name, address), "introspection": True}
    return Planted(rule, _address(address), (Made(time, SHOP, event),))


def _rotated_from_elsewhere(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """A key of three days, too young to have a usual network, is rotated by a stranger, who then uses it."""
    name, office, elsewhere = "person-900", "198.18.90.7", "203.0.113.50"
    made = time - 3 * DAY
    events = [Made(made, ACCOUNTS, operation(name, "10.0.0.9", "created"))]
    events += [Made(made + HOUR * (1 + number), SHOP, query(name, office)) for number in range(5)]
    events.append(Made(time, ACCOUNTS, operation(name, elsewhere, "rotated")))
    events.append(Made(time + 20 * MINUTE, SHOP, query(name, elsewhere)))
    return Planted(rule, _key(name), tuple(events))


def _silent_service(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """A service that sends something each few minutes is silent for five hours of a day."""
    begin = time // DAY * DAY + 10 * HOUR
    return Planted(rule, (("service", WEBHOOKS),), silenced=(WEBHOOKS, begin, begin + 5 * HOUR))


def _missing_numbers(rule: str, time: float, _: dict[str, Key]) -> Planted:
    """Three events of a source never come. Its group is known when the sources are: see `attacks`."""
    return Planted(rule, (), lost=(ACCOUNTS, time, 3))


_ATTACKS: dict[str, Callable[[str, float, dict[str, Key]], Planted]] = {
    "failed-logins-by-key": _failed_logins_by_key,
    "failed-logins-by-address": _failed_logins_by_address,
    "failures-then-success": _failures_then_success,
    "many-keys-from-one-address": _many_keys,
    "denials-above-usual": _denials_above_usual,
    "many-denials": _many_denials,
    "queries-above-usual": _queries_above_usual,
    "complexity-above-usual": _large_query("person-66", complexity=6_000),
    "aliases-above-usual": _large_query("person-69", aliases=100),
    "rows-above-usual": _large_query("person-72", rows=50_000),
    "new-network-of-key": _new_network,
    "revoked-key": _revoked_key,
    "rotated-key-from-elsewhere": _rotated_from_elsewhere,
    "silent-service": _silent_service,
    "missing-numbers": _missing_numbers,
    "overdue-key": _overdue_key,
    "change-without-approval": _unapproved,
    "introspection": _introspection,
}
