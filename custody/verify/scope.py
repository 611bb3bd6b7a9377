"""Which part of an archive is verified."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from custody.archive.reader import choose_logs
from custody.format import layout
from custody.format.times import format_time, parse_time

__all__ = ["EVERYTHING", "KeyRange", "Part", "Scope", "Span", "Within"]


@dataclass(frozen=True, slots=True)
class Span:
    """Statements `[first, end)` of a log.

    Attributes:
        first: the first sequence.
        end: the sequence after the last one; None for all.
    """

    first: int = 0
    end: int | None = None


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Keys with a prefix, those above `after` and up to `through`; '' for no bound."""

    prefix: str
    after: str = ""
    through: str = ""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of an archive that a user chose.

    The logs decide which chains are verified; each is verified from its first statement to its end. The times decide
    which statements' objects are read. So a wrong clock hides no statement, no gap and no rollback: at most it leaves
    objects unread, and those are counted.

    Attributes:
        logs: `<log>/<partition>`, or `<log>` for all its partitions; empty for all logs.
        since: only objects of statements sealed at this time or later.
        until: only objects of statements sealed before this time.
    """

    logs: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def timed(self) -> bool:
        """Whether it has a time."""
        return self.since is not None or self.until is not None

    def choose(self, logs: Collection[layout.Log], *, complete: bool) -> Collection[layout.Log]:
        """Return those of an archive's logs that are in the part.

        Args:
            logs: the archive's logs.
            complete: whether these are all. Otherwise a log that is not among them may exist all the same.

        Raises:
            ConfigurationError: the archive has no log of a name.
        """
        names = [name for name in self.logs if complete or any(name in {str(log), log.name} for log in logs)]
        return choose_logs(logs, names) if names or not self.logs else ()

    def reads(self, sealed_at: str) -> bool:
        """Return whether the objects of a statement that was sealed at this time are read."""
        if not self.timed:
            return True
        moment = parse_time(sealed_at)
        return (self.since is None or moment >= self.since) and (self.until is None or moment < self.until)

    def __bool__(self) -> bool:
        return bool(self.logs) or self.timed

    def __str__(self) -> str:
        times = [f"{word} {moment_text(at)}" for word, at in (("from", self.since), ("before", self.until)) if at]
        return ", ".join((*self.logs, *([f"sealed {' '.join(times)}"] if times else [])))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        times = {"since": self.since, "until": self.until}
        return {"logs": list(self.logs)} | {name: format_time(at) if at else None for name, at in times.items()}


def moment_text(moment: datetime) -> str:
    """Return an aware datetime in UTC, to the second."""
    # Not strftime: on Linux its years before 1000 have fewer than four digits.
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


WHOLE = Part()


@dataclass(frozen=True, slots=True)
class Within:
    """How much is listed besides the slots of the spans: their manifests and checkpoints, with all versions.

    Attributes:
        frame: whether the folders above the logs are listed, and folders that no archive has; and whether lifecycle
            rules are checked.
        audits: whether the log of audits is listed and read, with all that it refers to.
        folders: logs of which all keys are listed, where the store is a folder. Of other logs there, the slots of the
            spans are looked for one by one: a listing of a part of a folder takes as long as one of all of it.
    """

    frame: bool = False
    audits: bool = False
    folders: frozenset[layout.Log] = frozenset()


@dataclass(frozen=True, slots=True)
class Scope:
    """What is verified.

    Attributes:
        spans: which statements of which logs, in order; None for all logs.
        contents: whether objects are read, or only the chain is checked.
        listing: whether the archive is listed. Only with a listing are these checked: objects that no statement names,
            checkpoints, audits, versions, lifecycle rules. Without it, spans must be given.
        within: with a listing, and spans: that only a part is listed. Objects that no statement names are not looked
            for then.
        expired: for each log, the sequence before which an audit found that objects may be gone.
        part: what a user chose. Only with a listing, and without spans.
    """

    spans: Mapping[layout.Log, Sequence[Span]] | None = None
    contents: bool = True
    listing: bool = True
    within: Within | None = None
    expired: Mapping[layout.Log, int] = field(default_factory=dict)
    part: Part = WHOLE

    @property
    def whole(self) -> bool:
        """Whether the whole archive is listed."""
        return self.listing and self.within is None

    @property
    def audits(self) -> bool:
        """Whether the log of audits is verified."""
        return self.listing and (self.within is None or self.within.audits)

    def versions(self) -> Iterator[KeyRange]:
        """Yield of which keys all versions are listed."""
        if self.within is None:
            yield KeyRange("")
            return
        yield from self.ranges()
        if self.within.frame:
            yield KeyRange(layout.ARCHIVE)

    def ranges(self) -> Iterator[KeyRange]:
        """Yield which keys are listed where only a part is. The ranges of adjacent spans meet."""
        for log, spans in (self.spans or {}).items():
            for span in spans:
                for key, prefix, last in (
                    (layout.manifest_key, layout.log_prefix(log), (span.end or 0) - 1),
                    (layout.checkpoint_key, layout.checkpoint_prefix(log), span.end or 0),
                ):
                    # Of checkpoints, that of size `first` is of the span before.
                    before = span.first if key is layout.checkpoint_key else span.first - 1
                    after = key(log, before) if span.first else ""
                    yield KeyRange(prefix, after, key(log, last) if span.end is not None else "")
        yield from self.of_audits()

    def of_audits(self) -> Iterator[KeyRange]:
        """Yield which keys of the log of audits are listed where only a part is."""
        if self.within is not None and self.within.audits:
            yield KeyRange(layout.AUDITS)
            yield KeyRange(layout.checkpoint_prefix(layout.AUDIT_LOG))

    def spans_of(self, log: layout.Log) -> Sequence[Span]:
        """Return the spans of a log."""
        return self.spans[log] if self.spans is not None else (Span(),)


EVERYTHING = Scope()
