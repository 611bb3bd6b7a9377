"""The limits of FORMAT.md, each stated once. Writers stay below them; readers report what exceeds them."""

from typing import Final

MIB: Final = 1_048_576

EVENT_BYTES: Final = MIB
"""Bytes of an event as received."""
EVENT_DEPTH: Final = 64
"""Objects and arrays open at once in an event, the event itself counted."""
EVENT_TYPE_BYTES: Final = 255
"""Bytes of `event_type` in UTF-8; it has at least one."""

BATCH_EVENTS: Final = 10_000
"""Events in a batch."""
BATCH_BYTES: Final = 16 * MIB
"""Inflated bytes of a batch."""
MEMBER_BYTES: Final = BATCH_BYTES + 65_536
"""Stored bytes of a batch: deflate adds 5 bytes to every 16 KiB or more that it cannot compress."""
SEGMENT_BYTES: Final = 256 * MIB
"""Stored bytes of a segment."""
ORPHAN_INFLATED: Final = 1024 * MIB
"""Inflated bytes of a segment that no manifest names. A manifest states its own."""
ORPHAN_STATEMENTS: Final = 10_000
"""Statements that account for offsets of such a segment. Others repeat the work of one run in far fewer."""

QUARANTINE_BYTES: Final = 64 * MIB
"""Stored bytes of a quarantine object."""
QUARANTINE_INFLATED: Final = 512 * MIB
"""Inflated bytes of a quarantine object."""
QUARANTINE_LINE: Final = 16 * MIB
"""Bytes of a line of a quarantine object, without its newline."""
QUARANTINE_RECORD: Final = 8 * MIB
"""Bytes of a quarantined record's key, value and headers together, beyond which some of them are omitted."""

STATEMENT_BYTES: Final = 8 * MIB
"""Bytes of a statement, without its newline."""
STATEMENT_DEPTH: Final = 8
"""Objects and arrays open at once in a statement."""
SIGNATURES_BYTES: Final = 16 * 1024
"""Bytes of the line of signatures, without its newline."""
RANGES: Final = 50_000
"""Entries in `skipped`, and in `quarantine.offsets`."""
UNREADABLE_RANGES: Final = 1_000
"""Entries in `unreadable`."""
UNREADABLE_ERROR: Final = 256
"""Bytes in UTF-8 of an `error` in `unreadable`."""
PASSED_OVER: Final = 1_000
"""Entries in `passed_over`."""
TYPES: Final = 1_000
"""Entries in `types`."""

FILE_BYTES: Final = STATEMENT_BYTES + SIGNATURES_BYTES + 2
"""Bytes of a manifest or an audit, both lines with their newlines."""
INT_MAX: Final = 2**63 - 1
"""The largest whole number."""
ARCHIVE_FILE_BYTES: Final = 32 * 1024
"""Bytes of `archive.json`: both lines are short."""
PROMISE_SECONDS: Final = 31_622_400
"""The longest `heartbeat` and `checkpoint`: 366 days. The shortest is one second."""
RETENTION_DAYS: Final = 36_525
"""The longest `retention_days`; the shortest is one day."""
NOTE_BYTES: Final = 65_536
"""Bytes of a note."""
NOTE_SIGNATURES: Final = 64
"""Signature lines of a note."""
