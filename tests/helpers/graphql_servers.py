"""GraphQL servers as published, for the audit middleware: Strawberry, Ariadne, and FastAPI with Strawberry's router.

FastAPI stands for FraiseQL 1.x, which needs Python 3.13: it answers without graphql-core, so bodies are all there is.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import ariadne
import strawberry
from ariadne.asgi import GraphQL as AriadneGraphQL
from ariadne.asgi.handlers import GraphQLTransportWSHandler
from ariadne.contrib.sse import SSESubscriptionHandler
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route
from strawberry.asgi import GraphQL
from strawberry.exceptions import ConnectionRejectionError
from strawberry.extensions import SchemaExtension
from strawberry.file_uploads import Upload
from strawberry.schema.config import StrawberryConfig

from custody.emit.ariadne import AuditHTTPHandler

GOOD_KEY = "key-17.correct-horse-battery"
"""A key whose id is `key-17`."""


@strawberry.type
class User:
    """A user."""

    id: int
    name: str


@strawberry.type
class Query:
    """What may be asked."""

    @strawberry.field
    def users(self, first: int = 3) -> list[User]:
        """Return so many users."""
        return [User(id=number, name="ada") for number in range(first)]

    @strawberry.field
    def me(self) -> User | None:
        """Return nobody."""
        return None

    @strawberry.field
    def fail(self) -> str | None:
        """Fail, with a text that must be in no event."""
        raise RuntimeError("the text of an error")

    @strawberry.field
    async def slow(self, seconds: float) -> str:
        """Take a while."""
        await asyncio.sleep(seconds)
        return "done"


@strawberry.type
class Mutation:
    """What may be changed."""

    @strawberry.mutation
    def login(self, user: str, password: str) -> str:
        """Take a password."""
        return f"{user} {len(password)}"

    @strawberry.mutation
    async def read(self, file: Upload) -> int:
        """Return 1, and close the file: nobody else does."""
        await file.close()  # type: ignore[attr-defined]
        return 1


@strawberry.type
class Subscription:
    """What may be followed."""

    @strawberry.subscription
    async def count(self, to: int, wait: float = 0.0) -> AsyncGenerator[int, None]:
        """Yield numbers."""
        for number in range(to):
            await asyncio.sleep(wait)
            yield number

    @strawberry.subscription
    async def broken(self) -> AsyncGenerator[int, None]:
        """Yield what is no number."""
        yield "the text of an error"  # type: ignore[misc]


class StrawberryApp(GraphQL[Any, Any]):
    """Strawberry's, which lets no one in by WebSocket without a token."""

    async def on_ws_connect(self, context: Any) -> Any:
        """Check the token."""
        params = context["connection_params"] or {}
        if "token" in params and params["token"] != GOOD_KEY:
            raise ConnectionRejectionError({})
        return await super().on_ws_connect(context)


def strawberry_app(extensions: Iterable[type[SchemaExtension]] = ()) -> Any:
    """Return Strawberry's ASGI application, with everything switched on."""
    config = StrawberryConfig(enable_experimental_incremental_execution=True, batching_config={"max_operations": 10})
    schema = strawberry.Schema(Query, Mutation, Subscription, extensions=list(extensions), config=config)
    protocols = ("graphql-transport-ws", "graphql-ws", "graphql-sse", "multipart-subscription")
    return StrawberryApp(schema, multipart_uploads_enabled=True, subscription_protocols=protocols)


def ariadne_app(handler: type[AuditHTTPHandler] = AuditHTTPHandler) -> Any:
    """Return Ariadne's ASGI application."""
    query = ariadne.QueryType()
    query.set_field("users", lambda *_, first: [{"id": number} for number in range(first)])
    query.set_field("me", lambda *_: None)
    subscription = ariadne.SubscriptionType()

    @subscription.source("count")
    async def source(_: Any, __: Any, to: int) -> AsyncGenerator[int, None]:
        for number in range(to):
            yield number

    subscription.set_field("count", lambda number, *_, **__: number)
    schema = ariadne.make_executable_schema(
        "type Query { users(first: Int = 3): [User!]! me: User } type User { id: Int! }"
        " type Subscription { count(to: Int!): Int! }",
        query,
        subscription,
    )
    return AriadneGraphQL(
        schema,
        execute_get_queries=True,
        http_handler=handler(subscription_handlers=[SSESubscriptionHandler()]),
        websocket_handler=GraphQLTransportWSHandler(),
    )


def fastapi_app() -> Any:
    """Return an application that answers from bodies alone, as FraiseQL's TurboRouter does."""
    app = FastAPI()

    @app.post("/")
    async def graphql(request: Request) -> JSONResponse:
        text = request.headers["content-type"] == "application/graphql"
        body = {"query": (await request.body()).decode()} if text else await request.json()
        if "query" not in body:
            return JSONResponse({"errors": [{"message": "no", "extensions": {"code": "PERSISTED_QUERY_NOT_FOUND"}}]})
        return JSONResponse({"data": {"orders": [{"id": 1}, {"id": 2}]}})

    return app


def all_servers(
    extensions: Iterable[type[SchemaExtension]] = (), more: Iterable[tuple[str, Callable[..., Any]]] = ()
) -> Starlette:
    """Return one application with all of them, and a page that is none."""
    return Starlette(
        routes=[
            Mount("/plain", strawberry_app()),
            Mount("/strawberry", strawberry_app(extensions)),
            Mount("/ariadne", ariadne_app()),
            Mount("/fastapi", fastapi_app()),
            Mount("/gzip", GZipMiddleware(strawberry_app(), minimum_size=1)),
            Route("/other", lambda _: PlainTextResponse("other"), methods=["GET", "POST"]),
            *(Mount(path, app) for path, app in more),
        ]
    )


PATHS = ("/plain", "/strawberry", "/ariadne", "/fastapi", "/gzip")
"""The paths of `all_servers` that are GraphQL."""
