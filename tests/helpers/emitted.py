"""Events as an emitter writes them: numbered, with `source` and `source_seq` at the end of the line."""

import json
from datetime import UTC, datetime
from typing import Any

from tests.helpers.corpus import EVENTS

SOURCE = "shop/web-1/4711-1790000000"


def emitted(number: int, source: str = SOURCE, kind: str = "query_executed", **fields: Any) -> bytes:
    """Return an emitted event of one of the six types, or a marker of its source."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    content = EVENTS.get(kind, {"event_type": kind})
    event = {"timestamp": now, "event_id": f"id-{source}-{number}", **fields}
    line = json.dumps({**content, **event}, separators=(",", ":"))
    return f'{line[:-1]},"source":{json.dumps(source)},"source_seq":{number}}}'.encode()


def life(last: int, source: str = SOURCE, *, stopped: bool = True) -> list[bytes]:
    """Return all events of a source, with its markers."""
    kinds = ["emitter_started", *["query_executed"] * (last - 2), "emitter_stopped" if stopped else "query_executed"]
    return [emitted(number, source, kind) for number, kind in enumerate(kinds, 1)]
