"""The statements of files that were not sealed in the period: their rows are left out where such a file is read."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from custody.archive.time_spans import Span
from custody.format.layout import Log, parse_log_text
from custody.query import tables


class Excluded:
    """Which statements are left out, by log.

    Only the files of a span that the period cuts have such statements. So no other file pays for them.
    """

    def __init__(self, ranges: Iterable[tuple[Log, int, int]], spans: Iterable[Span]) -> None:
        """Set up.

        Args:
            ranges: statements `[first, end)` of logs that are left out.
            spans: whose files have rows of statements.
        """
        numbers: dict[Log, set[int]] = {}
        for log, first, end in ranges:
            numbers.setdefault(log, set()).update(range(first, end))
        self._numbers: dict[Log, Sequence[int]] = {log: sorted(several) for log, several in numbers.items()}
        self._spans: dict[str, tuple[Log, int, int]] = {}
        for span in spans:
            if (known := parse_log_text(span.log)) is not None and known in self._numbers:
                for ref in filter(None, (span.manifests, span.batches)):
                    self._spans[ref.key] = (known, span.first, span.end)

    def rest(self, key: str | None) -> Any:
        """Return an expression that the other rows of a file meet; None if no row of it is left out."""
        if key is None or not self._numbers:
            return None
        if (table := tables.parse_table_key(key)) is not None:
            log, first, end = table.log, table.first, table.end
        elif key in self._spans:
            log, first, end = self._spans[key]
        else:
            return None
        numbers = self._numbers.get(log, ())
        within = numbers[bisect_left(numbers, first) : bisect_left(numbers, end)]
        # A set, and no condition for each range: Arrow's depth of calls, and its time, grow with these.
        return ~pc.field("sequence").isin(pa.array(within, pa.int64())) if within else None
