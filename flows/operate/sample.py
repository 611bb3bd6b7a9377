"""Made-up audit events of GraphQL servers, for the demo, tests and benchmarks. The same seed gives the same events.

Each has about 340 bytes, and some fields that custody does not know, as applications add them.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

_SERVICES = ("orders-graphql", "catalogue-graphql", "accounts-graphql", "billing-graphql")
_OPERATIONS = ("GetOrders", "OrderById", "SearchProducts", "UpdateBasket", "CurrentUser", "InvoicesOfMonth")
_AGENT = "orders-web/2.4.1 (python-httpx/0.28)"

MIX = {
    "query_executed": 58,
    "auth_attempt": 14,
    "authz_check": 20,
    "api_key_operation": 2,
    "security_event": 3,
    "config_change": 3,
}
"""Percentage of each type."""


def sample_events(number: int, seed: int, begin: datetime, per_second: int = 1000) -> Iterator[bytes]:
    """Yield valid events of all six types.

    Args:
        number: how many.
        seed: of the random generator.
        begin: time of the first event.
        per_second: how many of them share a second.
    """
    dice = random.Random(seed)  # noqa: S311 - made-up events, nothing secret
    clients = [f"10.{dice.randrange(256)}.{dice.randrange(256)}.{dice.randrange(1, 255)}" for _ in range(3000)]
    clients += [f"2001:db8:{dice.getrandbits(16):x}::{dice.getrandbits(16):x}" for _ in range(300)]
    keys = [f"key_{dice.getrandbits(64):016x}" for _ in range(500)]
    queries = [f"{dice.getrandbits(128):032x}" for _ in range(2000)]
    kinds = dice.choices(list(MIX), list(MIX.values()), k=4096)
    step = 1_000_000 // per_second
    second, stamp = -1, ""
    for index in range(number):
        seconds, micro = divmod(index * step, 1_000_000)
        if seconds != second:
            second = seconds
            stamp = (begin + timedelta(seconds=seconds)).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
        kind = kinds[dice.getrandbits(12)]
        head = (
            f'{{"event_type":"{kind}","timestamp":"{stamp}.{micro:06d}Z","request_id":"{dice.getrandbits(128):032x}",'
            f'"api_key_id":"{dice.choice(keys)}","client_ip":"{dice.choice(clients)}",'
        )
        tail = f'"service":"{dice.choice(_SERVICES)}"}}'
        yield f"{head}{_body(kind, dice, queries)}{tail}".encode()


def _body(kind: str, dice: random.Random, queries: list[str]) -> str:
    match kind:
        case "query_executed":
            return (
                f'"query_hash":"{dice.choice(queries)}","complexity":{dice.randrange(1, 900)},'
                f'"execution_time":{dice.expovariate(0.05):.3f},"result_rows":{dice.randrange(500)},'
                f'"operation_name":"{dice.choice(_OPERATIONS)}",'
            )
        case "auth_attempt":
            if dice.random() < 0.06:
                return (
                    '"status":"failure","failure_reason":"signature does not match","key_version":null,'
                    f'"key_age_days":null,"user_agent":"{_AGENT}",'
                )
            return (
                f'"status":"success","failure_reason":null,"key_version":{dice.randrange(1, 6)},'
                f'"key_age_days":{dice.randrange(120)},"user_agent":"{_AGENT}",'
            )
        case "authz_check":
            return (
                f'"resource_type":"Order","resource_id":"ord_{dice.getrandbits(64):016x}",'
                f'"field_name":{dice.choice(("null", chr(34) + "total" + chr(34)))},'
                f'"permission_granted":{"true" if dice.random() < 0.93 else "false"},"policy":"orders.read.own",'
            )
        case "api_key_operation":
            return (
                f'"operation":"{dice.choice(("created", "rotated", "revoked"))}",'
                '"permissions":["orders:read","catalogue:read"],'
                f'"tier":"{dice.choice(("free", "team", "enterprise"))}",'
            )
        case "security_event":
            return (
                f'"severity":"{dice.choice(("low", "medium", "high", "critical"))}","alert_type":"rate_limit",'
                f'"details":{{"limit":1000,"seen":{dice.randrange(1001, 9000)},"window":"60s"}},'
                '"action_taken":"throttled",'
            )
        case _:
            return (
                '"resource":"limits","operation":"update","changed_by":"ops@example.com",'
                f'"changes":{{"max_complexity":[{dice.randrange(400)},{dice.randrange(400, 900)}]}},'
                '"approval_status":"approved",'
            )


def invalid_values() -> list[bytes]:
    """Return values that a broken application might send. None is a valid event, each for another reason."""
    now = datetime(2026, 1, 31, 12, tzinfo=UTC).isoformat().replace("+00:00", "Z")
    known = f'"event_type":"auth_attempt","timestamp":"{now}","request_id":"r","api_key_id":null,"client_ip":"10.0.0.1"'
    rest = '"status":"success","failure_reason":null,"key_version":null,"key_age_days":null'
    return [
        b"",
        b"ping",
        b'["event_type","auth_attempt"]',
        b'{"event_type":"auth_attempt","timestamp":"',
        b"\xff\xfe not UTF-8",
        f"{{{known},{rest},{known}}}".encode(),
        f"{{{known.replace('auth_attempt', '')},{rest}}}".encode(),
        f"{{{known.replace(now, 'yesterday')},{rest}}}".encode(),
        f"{{{known.replace('10.0.0.1', 'localhost')},{rest}}}".encode(),
        f"{{{known},{rest.replace('success', 'maybe')}}}".encode(),
    ]
