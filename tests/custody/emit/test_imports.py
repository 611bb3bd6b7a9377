"""What an application loads when it imports what it emits with."""

import subprocess
import sys
from pathlib import Path

import pytest

import custody.emit

ROOT = Path(__file__).parents[3]
HEAVY = {"boto3", "cryptography", "graphql", "isal", "pydantic", "rich", "typer"}
CLIENTS = {"confluent_kafka", "elasticsearch", "opentelemetry", "prometheus_client"}


@pytest.mark.parametrize(
    ("statement", "client"),
    [
        ("import custody.emit", "msgspec"),
        ("from custody.emit import Options, AsyncWriter, AuditError, query_executed, own", "msgspec"),
        ("from custody.emit import MultiWriter; import custody.emit.metrics", "msgspec"),
        ("from custody.emit import AuditMiddleware, Failure, Identity, Proxies", "msgspec"),
        ("from custody.emit import KafkaWriter", "confluent_kafka"),
        ("from custody.emit import ElasticsearchWriter", "elasticsearch"),
    ],
)
def test_an_application_loads_what_it_uses(statement: str, client: str) -> None:
    """Neither what commands need nor the client of another writer: an application's start and memory are its own."""
    # What a client library loads by itself is its own affair.
    begun = f"import sys, {client}; begun = set(sys.modules)"
    script = f"{begun}; {statement}; print(*sorted({HEAVY | CLIENTS} & set(sys.modules) - begun))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.split() == []


def test_every_name_is_there() -> None:
    """What the package promises to load is what its modules have, and other names are errors."""
    for name, module in custody.emit._MODULES.items():
        assert getattr(custody.emit, name).__module__ == f"custody.emit.{module}"
        assert module in custody.emit.__all__
    with pytest.raises(AttributeError, match="nothing_such"):
        custody.emit.nothing_such  # noqa: B018
