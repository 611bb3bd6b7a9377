"""What an application loads with `custody.emit`: msgspec, and nothing that is heavy."""

import subprocess
import sys

HEAVY = ("rich", "typer", "pydantic", "cryptography", "isal", "boto3", "confluent_kafka", "elasticsearch", "graphql")


def test_building_and_encoding_loads_nothing_heavy() -> None:
    """An application server pays for what it uses alone."""
    script = (
        "import sys, custody.emit.asgi, custody.emit.builders, custody.emit.encode, custody.emit.redact\n"
        f"print(sorted({set(HEAVY)} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
