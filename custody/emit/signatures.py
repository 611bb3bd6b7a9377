"""Gives the text of a query's signature once a day, with the first event of its hash. It has no literals."""

from collections import OrderedDict
from datetime import UTC, date, datetime
from typing import Final

from custody.emit.graphql import Analysis
from custody.emit.redact import Signature

SIGNATURES: Final = 10_000
"""Hashes that are remembered a day. Beyond it a signature may come again."""


class SignatureTexts:
    """Remembers of which hashes this process has given the text today. One thread uses it at a time."""

    def __init__(self) -> None:
        """Begin without any."""
        self._day = date.min
        self._given: OrderedDict[str, None] = OrderedDict()

    def first(self, analysis: Analysis) -> Signature | None:
        """Return the text of a signature if this is its first event of the day."""
        if analysis.signature is None:
            return None
        today = datetime.now(UTC).date()
        if today != self._day:
            self._day = today
            self._given.clear()
        if analysis.query_hash in self._given:
            self._given.move_to_end(analysis.query_hash)
            return None
        self._given[analysis.query_hash] = None
        if len(self._given) > SIGNATURES:
            self._given.popitem(last=False)
        return Signature(analysis.signature)
