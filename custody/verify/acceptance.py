"""Turn a finding that is to be accepted into entries of `trust.json` (FORMAT.md, Trust). Pure.

Rules:

1. Only a real finding can be accepted: from a report of `custody verify --json`, or with its fields given one by one.
   A witness and a writer print these fields: some of their losses are in no report of `custody verify`.
2. An entry is as exact as possible, so that one accepted loss does not hide the next. It has the object's key, or else
   the log and one sequence; and the digest if there is one. A finding about several statements needs an entry for each.
3. Tampering is only accepted by its exact digest. Without a digest it cannot be accepted.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

import msgspec

from custody.errors import ConfigurationError, counted
from custody.findings import CATALOGUE, Accepted, Finding, Severity, finding

ENTRIES_LIMIT = 10_000
"""The most statements that one command accepts."""
_LINE_LIMIT = 16 * 1_048_576
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reported:
    """The findings of a report, and their archive's id."""

    findings: tuple[Finding, ...]
    archive: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """The fields that identify one finding. None matches any value."""

    finding: str
    log: str | None = None
    sequence: int | None = None
    key: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        given = {name: getattr(self, name) for name in ("log", "sequence", "key", "sha256")}
        return self.finding + "".join(f", {name} {value}" for name, value in given.items() if value is not None)

    def matches(self, finding: Finding) -> bool:
        """Return whether a finding has these fields. A finding about several sequences matches each of them."""
        same = all(getattr(self, name) in {None, getattr(finding, name)} for name in ("log", "key", "sha256"))
        return same and (self.sequence is None or _covers(finding, self.sequence))


def read_report(report: BinaryIO) -> Reported:
    """Return the findings in the output of `custody verify --json`.

    Raises:
        ConfigurationError: it is not such a report, or has no verdict at its end.
    """
    findings: list[Finding] = []
    lines = iter(partial(report.readline, _LINE_LIMIT + 1), b"")
    for number, line in enumerate(lines, 1):
        if len(line) > _LINE_LIMIT:
            raise ConfigurationError(f"line {number} of the report is longer than {_LINE_LIMIT} bytes")
        try:
            entry: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if entry.get("kind") == "finding":
                findings.append(_finding(entry))
            elif entry.get("kind") == "verdict":
                archive: str | None = msgspec.convert(entry.get("archive"), str | None)
                return Reported(tuple(findings), archive)
        except (msgspec.MsgspecError, ValueError, KeyError, RecursionError):
            raise ConfigurationError(
                f"line {number} of the report is not output of `custody verify --json`; pass the complete output"
            ) from None
    raise ConfigurationError(
        "the report has no verdict, so it is incomplete; pass the complete output of `custody verify --json`"
    )


def choose(reported: Reported, wanted: Wanted) -> Finding:
    """Return the finding of a report that has the wanted fields.

    Raises:
        ConfigurationError: there is none or more than one, or it is accepted already.
    """
    namesakes = [finding for finding in reported.findings if finding.finding == wanted.finding]
    matches = [finding for finding in namesakes if wanted.matches(finding)]
    if not matches:
        others = f"; with that name it has {_listed(namesakes)}" if namesakes else ""
        raise ConfigurationError(f"the report has no finding {wanted}{others}")
    if len(matches) > 1:
        raise ConfigurationError(
            f"the report has {counted(len(matches), 'finding')} {wanted}; choose one with --log, --sequence or --key:"
            f" {_listed(matches)}"
        )
    (chosen,) = matches
    if chosen.accepted:
        raise ConfigurationError(f"{chosen.finding} ({chosen.where}) is accepted already: {chosen.accepted}")
    return chosen


def named(wanted: Wanted) -> Finding:
    """Return a finding with these fields, for when there is no report.

    Raises:
        ConfigurationError: there is no finding of that name, or too few fields are given.
    """
    if wanted.finding not in CATALOGUE:
        raise ConfigurationError(f"there is no finding named {wanted.finding!r}; `custody verify` prints the names")
    if wanted.key is None and (wanted.log is None or wanted.sequence is None):
        raise ConfigurationError(
            "identify the finding: give --from REPORT; or --log and --sequence, or --key, as in the report"
        )
    where: dict[str, Any] = {"log": wanted.log, "sequence": wanted.sequence, "key": wanted.key, "sha256": wanted.sha256}
    return finding(wanted.finding, "named by its fields", **where)


def entries(chosen: Finding, reason: str, by: str, at: str) -> list[Accepted]:
    """Return the entries for `trust.json`.

    Args:
        chosen: the finding.
        reason: why it is accepted.
        by: who accepts it.
        at: when, as custody writes times.

    Raises:
        ConfigurationError: it needs no acceptance, or cannot be identified exactly enough.
    """
    if not (reason.strip() and by.strip()):
        raise ConfigurationError("an acceptance needs a reason (--reason) and a name (--by)")
    if chosen.severity is Severity.NOTICE:
        raise ConfigurationError(f"{chosen.finding} is only a notice: it needs no acceptance")
    if chosen.severity is Severity.TAMPERED and chosen.sha256 is None:
        raise ConfigurationError(
            f"{chosen.finding} is tampering, which can only be accepted by its sha256, and this finding has none:"
            f" {chosen.action}"
        )
    about_several = chosen.through is not None and chosen.through != chosen.sequence
    if chosen.key is not None and not about_several and chosen.finding != "sequence-gap":
        return [Accepted(chosen.finding, reason, by, at, key=chosen.key, sha256=chosen.sha256)]
    if chosen.log is None or chosen.sequence is None:
        raise ConfigurationError(f"{chosen.finding} names neither an object nor a statement, so it cannot be accepted")
    first = Accepted(chosen.finding, reason, by, at, log=chosen.log, sequence=chosen.sequence, sha256=chosen.sha256)
    if chosen.severity is Severity.TAMPERED:
        # The digest is that of the first statement; the next verification reports the next one.
        return [first]
    last = chosen.through if chosen.through is not None else chosen.sequence
    number = last - chosen.sequence + 1
    if chosen.count not in {1, number}:
        raise ConfigurationError(
            f"{chosen.finding} is about {chosen.count} of the statements {chosen.sequence} to {last}, not about all of"
            " them, so it cannot be accepted; remove its cause instead"
        )
    if number > ENTRIES_LIMIT:
        raise ConfigurationError(
            f"{chosen.finding} is about {counted(number, 'statement')}, and at most {ENTRIES_LIMIT:,} can be accepted"
            " at once; restore them instead"
        )
    return [
        first,
        *(
            Accepted(chosen.finding, reason, by, at, log=chosen.log, sequence=sequence)
            for sequence in range(chosen.sequence + 1, last + 1)
        ),
    ]


def _finding(entry: dict[str, Any]) -> Finding:
    severity = Severity[msgspec.convert(entry["severity"], str).upper()]
    return msgspec.convert({**entry, "severity": severity.value}, Finding)


def _covers(finding: Finding, sequence: int) -> bool:
    return finding.sequence is not None and finding.sequence <= sequence <= (finding.through or finding.sequence)


def _listed(findings: Sequence[Finding]) -> str:
    shown = "; ".join(
        finding.where + (f", {finding.key}" if finding.key and finding.key not in finding.where else "")
        for finding in findings[:_SHOWN]
    )
    return shown + (f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else "")
