"""A shop with a GraphQL API, which writes an audit event for each operation. See docs/first-events.md."""

import os
from pathlib import Path

import strawberry
from strawberry.asgi import GraphQL

from custody.emit import AuditMiddleware, Failure, Identity, KafkaWriter, Options, own
from custody.emit.strawberry import AuditExtension

KEYS = {"the-secret-of-ada": "key_ada"}  # a real shop has hashes of secrets, in a database
ORDERS = ["a lamp", "a chair", "a table"]
writer = KafkaWriter(
    os.environ["SHOP_TOPIC"],
    {"bootstrap.servers": os.environ["SHOP_KAFKA"]},
    Options(service="shop", spool=Path("spool")),
)


def identify(scope: dict) -> Identity | Failure | None:
    """Return whose key a request has."""
    secret = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").removeprefix("Bearer ")
    if not secret:
        return None
    return Identity(KEYS[secret]) if secret in KEYS else Failure("unknown key")


@strawberry.type
class Query:
    """What anybody may read."""

    @strawberry.field
    def orders(self, first: int = 10) -> list[str]:
        """Return the first orders."""
        return ORDERS[:first]


@strawberry.type
class Mutation:
    """What changes something."""

    @strawberry.mutation
    def pay(self, order: int, card: str) -> bool:  # noqa: ARG002 - no shop of ours takes money
        """Pay an order: an event of the shop's own, beside the one that each operation gets."""
        writer.write(own("order.paid", order=order))
        return True


schema = strawberry.Schema(query=Query, mutation=Mutation, extensions=[AuditExtension])
app = AuditMiddleware(GraphQL(schema), writer, identify=identify, runs_first=True)
