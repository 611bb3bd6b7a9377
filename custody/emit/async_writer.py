"""A writer for coroutines."""

import asyncio
from types import TracebackType
from typing import Self

from custody.emit.builders import AuditEvent
from custody.emit.encode import CheckedLine
from custody.emit.worker import Left
from custody.emit.writer import AuditWriter

__all__ = ["AsyncWriter"]


class AsyncWriter:
    """A writer for coroutines: where the writer would wait, the event loop goes on."""

    def __init__(self, writer: AuditWriter) -> None:
        """Use a writer; closing this closes it."""
        self.writer = writer

    async def write(self, event: AuditEvent | CheckedLine) -> None:
        """Take an event; as `AuditWriter.write`."""
        await self.writer.write_async(event)

    async def flush(self, seconds: float) -> int:
        """Wait until all events are delivered; as `AuditWriter.flush`."""
        return await asyncio.to_thread(self.writer.flush, seconds)

    async def close(self, seconds: float | None = None) -> Left:
        """Close the writer; as `AuditWriter.close`."""
        return await asyncio.to_thread(self.writer.close, seconds)

    async def __aenter__(self) -> Self:
        """Return the writer."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the writer."""
        await self.close()
