"""A broker that says which partitions it leads, and nothing else: no real one can be made to do that at will."""

import contextlib
import socket
import struct
import threading
from typing import Self

LIST_OFFSETS, _METADATA, _API_VERSIONS = 2, 3, 18
"""Keys of requests in Kafka's protocol."""
_VERSIONS = ((LIST_OFFSETS, 0, 2), (_METADATA, 0, 4), (_API_VERSIONS, 0, 3))
"""Each request that it claims to answer, with its oldest and newest version."""


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


class MuteBroker:
    """A listener on 127.0.0.1 that answers ApiVersions 3 and Metadata 4 of Kafka's protocol, and no other request.

    Attributes:
        bootstrap: its address, as `bootstrap.servers` has it.
        asked: the keys of the requests that it got.
    """

    def __init__(self, topic: str, partitions: int) -> None:
        """Listen, as the leader of the partitions of one topic."""
        self._topic, self._partitions = topic, partitions
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self.bootstrap = f"127.0.0.1:{self._port}"
        self.asked: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Closing alone would not wake the thread that accepts.
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as requests:
            while len(size := requests.read(4)) == 4:
                key, _, correlation = struct.unpack(">hhi", requests.read(struct.unpack(">i", size)[0])[:8])
                self.asked.append(key)
                body = {_API_VERSIONS: self._versions, _METADATA: self._metadata}.get(key, bytes)()
                if body:
                    answer = struct.pack(">i", correlation) + body
                    connection.sendall(struct.pack(">i", len(answer)) + answer)

    def _versions(self) -> bytes:
        """Return an ApiVersions response, version 3: error, keys with their versions, and the time of throttling."""
        listed = b"".join(struct.pack(">hhhB", *each, 0) for each in _VERSIONS)
        return struct.pack(">hB", 0, len(_VERSIONS) + 1) + listed + struct.pack(">iB", 0, 0)

    def _metadata(self) -> bytes:
        """Return a Metadata response, version 4: this broker, the cluster, and the topic with its leader."""
        broker = struct.pack(">iii", 0, 1, 1) + _text("127.0.0.1") + struct.pack(">ih", self._port, -1)
        topic = struct.pack(">ih", 1, 0) + _text(self._topic) + struct.pack(">?i", False, self._partitions)
        partitions = (struct.pack(">hiiiiii", 0, number, 1, 1, 1, 1, 1) for number in range(self._partitions))
        return broker + _text("mute") + struct.pack(">i", 1) + topic + b"".join(partitions)
