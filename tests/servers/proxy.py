"""A proxy between a client and an HTTP server that puts a fault into any chosen call, before or after its effect.

Run once without faults and read `calls`; then run again with a fault at each of them (STYLE.md 2 and 13).
"""

import contextlib
import http.client
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import urlsplit

Kind = Literal["timeout", "reset", "cut", "garbage", "403", "500", "503", "409", "412", "413", "429"]

Rewrite = Callable[[str, bytes], bytes]

_CODES = {
    "403": "AccessDenied",
    "500": "InternalError",
    "503": "SlowDown",
    "409": "ConditionalRequestConflict",
    "412": "PreconditionFailed",
    "413": "EntityTooLarge",
    "429": "TooManyRequests",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one call.

    Attributes:
        kind: no answer (`timeout`), a cut connection (`reset`), half of the answer's body (`cut`), what is no HTTP
            (`garbage`), or a status.
        effect: whether the server behind has done what the call asked for.
    """

    kind: Kind
    effect: bool

    def __str__(self) -> str:
        return f"{self.kind}-{'after' if self.effect else 'before'}"


FAULTS = tuple(
    Fault(kind, effect) for kind in ("timeout", "reset", "500", "503", "409", "412") for effect in (False, True)
)
"""Every fault that a call may meet; `cut` means something for reads alone."""


class FaultyProxy:
    """A proxy on a free port of 127.0.0.1, for as long as the `with` block lasts.

    Attributes:
        endpoint_url: where clients find it.
        calls: the method and path of each call since `reset`, in order.
        authorization: the credentials that the server behind gets instead of the client's; None for the client's own.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream)
        self._faults: Mapping[int, Fault] = {}
        self._always: Fault | None = None
        self._part = ""
        self._hidden = ""
        self._rewrite: Rewrite | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self.calls: list[str] = []
        self.authorization: str | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_one_request(self) -> None:
                # A client that gave up is what this is for, not a failure of the proxy.
                try:
                    super().handle_one_request()
                except OSError:
                    self.close_connection = True

            def _pass(self) -> None:
                proxy._handle(self)

            do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass  # noqa: N815 - names that the library calls

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_port}"

    def reset(
        self,
        faults: Mapping[int, Fault] | None = None,
        always: Fault | None = None,
        part: str = "",
        hidden: str = "",
        rewrite: "Rewrite | None" = None,
    ) -> None:
        """Forget the calls so far; from now on put these faults into the calls of these numbers, or one into others.

        Args:
            faults: by the number of the call.
            always: for all calls whose path and query hold `part`.
            part: any call holds the empty one.
            hidden: headers that begin so are left out of each answer, as AWS does for who may not see them.
            rewrite: is given the path and the body of each answer without a fault, and returns the body to pass on.
        """
        with self._lock:
            self._faults = faults or {}
            self._always = always
            self._part = part
            self._hidden = hidden.lower()
            self._rewrite = rewrite
            self.calls = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            fault = self._faults.get(len(self.calls), self._always if self._part in request.path else None)
            self.calls.append(f"{request.command} {urlsplit(request.path).path}")
        status, headers, answer = 0, [("Content-Length", "0")], b""
        if fault is None or fault.effect:
            status, headers, answer = self._ask(request, body)
        match fault.kind if fault else None:
            case None:
                if self._rewrite is not None:
                    answer = self._rewrite(request.path, answer)
                    kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
                    headers = [*kept, ("Content-Length", str(len(answer)))]
                self._answer(request, status, headers, answer)
            case "timeout":
                self._closing.wait(60)
                request.close_connection = True
            case "reset":
                request.close_connection = True
            case "garbage":
                request.wfile.write(b"<html>no HTTP at all\x00\xff</html>")
                request.close_connection = True
            case "cut":
                self._answer(request, status, headers, answer[: len(answer) // 2])
                request.close_connection = True
            case code:
                answer = f"<Error><Code>{_CODES[code]}</Code><Message>A fault.</Message></Error>".encode()
                # Before Elasticsearch, a proxy answers as nginx does.
                media = "text/html" if "json" in request.headers.get("Accept", "") else "application/xml"
                headers = [("Content-Type", media), ("Content-Length", str(len(answer)))]
                self._answer(request, int(code), headers, answer)

    def _ask(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass the request to the server behind. The headers stay unchanged, because the client signed them."""
        with contextlib.closing(
            http.client.HTTPConnection(self._upstream.hostname or "", self._upstream.port, timeout=60)
        ) as upstream:
            upstream.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                replaced = name.lower() == "authorization" and self.authorization is not None
                if name.lower() not in {"expect", "connection"} and not replaced:
                    upstream.putheader(name, value)
            if self.authorization is not None:
                upstream.putheader("Authorization", self.authorization)
            upstream.endheaders(body)
            answer = upstream.getresponse()
            headers = [
                (name, value)
                for name, value in answer.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}
                and not (self._hidden and name.lower().startswith(self._hidden))
            ]
            data = answer.read()
            length = answer.getheader("Content-Length") if request.command == "HEAD" else str(len(data))
            return answer.status, [*headers, ("Content-Length", length or "0")], data

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        request.send_response_only(status)
        for name, value in headers:
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
