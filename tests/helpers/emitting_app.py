"""The application of a gunicorn server: Strawberry behind the audit middleware, which emits to Kafka."""

import os
from pathlib import Path

from custody.emit.asgi import AuditMiddleware
from custody.emit.kafka import KafkaWriter
from custody.emit.strawberry import AuditExtension
from custody.emit.writer import Options
from tests.helpers.graphql_servers import strawberry_app

# Made before gunicorn forks: each worker gets a queue, a thread and a source of its own.
writer = KafkaWriter(
    os.environ["EMIT_TOPIC"],
    {"bootstrap.servers": os.environ["EMIT_BOOTSTRAP"], "message.timeout.ms": 3_000},
    Options(service="shop", spool=Path(os.environ["EMIT_SPOOL"]), close_seconds=2),
)
app = AuditMiddleware(strawberry_app([AuditExtension]), writer, runs_first=True)
