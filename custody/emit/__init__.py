"""Write audit events from an application: what a server imports to emit to Kafka, Elasticsearch or an archive.

`from custody.emit import KafkaWriter, Options, auth_attempt` works for every name below. Each is loaded when it is
asked for, so nobody needs the client libraries of writers that they do not use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from custody.emit.address import Proxies as Proxies
    from custody.emit.archive import ArchiveWriter as ArchiveWriter
    from custody.emit.asgi import AuditMiddleware as AuditMiddleware
    from custody.emit.async_writer import AsyncWriter as AsyncWriter
    from custody.emit.builders import AuditEvent as AuditEvent
    from custody.emit.builders import api_key_operation as api_key_operation
    from custody.emit.builders import auth_attempt as auth_attempt
    from custody.emit.builders import authz_check as authz_check
    from custody.emit.builders import config_change as config_change
    from custody.emit.builders import own as own
    from custody.emit.builders import query_executed as query_executed
    from custody.emit.builders import security_event as security_event
    from custody.emit.callers import Failure as Failure
    from custody.emit.callers import Identity as Identity
    from custody.emit.elasticsearch import ElasticsearchWriter as ElasticsearchWriter
    from custody.emit.errors import AuditError as AuditError
    from custody.emit.kafka import KafkaWriter as KafkaWriter
    from custody.emit.multi import MultiWriter as MultiWriter
    from custody.emit.queue import Limits as Limits
    from custody.emit.receive import receiver as receiver
    from custody.emit.redact import Redaction as Redaction
    from custody.emit.writer import AuditWriter as AuditWriter
    from custody.emit.writer import Options as Options

__all__ = [
    "address",
    "archive",
    "ariadne",
    "asgi",
    "async_writer",
    "builders",
    "callers",
    "elasticsearch",
    "errors",
    "kafka",
    "metrics",
    "multi",
    "queue",
    "receive",
    "redact",
    "strawberry",
    "writer",
]

_MODULES = {
    "ArchiveWriter": "archive",
    "AsyncWriter": "async_writer",
    "AuditError": "errors",
    "AuditEvent": "builders",
    "AuditMiddleware": "asgi",
    "AuditWriter": "writer",
    "ElasticsearchWriter": "elasticsearch",
    "Failure": "callers",
    "Identity": "callers",
    "KafkaWriter": "kafka",
    "Limits": "queue",
    "MultiWriter": "multi",
    "Options": "writer",
    "Proxies": "address",
    "Redaction": "redact",
    "api_key_operation": "builders",
    "auth_attempt": "builders",
    "authz_check": "builders",
    "config_change": "builders",
    "own": "builders",
    "query_executed": "builders",
    "receiver": "receive",
    "security_event": "builders",
}
"""Where each name is."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"custody.emit.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'custody.emit' has no attribute {name!r}")
