"""Turn a finding that somebody has judged into what `trust.json` says of it (FORMAT.md, Trust). Pure.

Rules:

1. What is accepted was found: it is taken from a report of `custody verify --json`, or named field by field.
2. An entry is as exact as the finding lets it be, so that one judged loss does not hide the next: the object's key
   where the finding is about one, else the log and one sequence; the digest wherever there is one. A finding about
   several statements is an entry for each.
3. Tampering is accepted by the exact digest of what was found, and where there is none it is not accepted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from custody.errors import ConfigurationError
from custody.findings import CATALOGUE, Finding, Severity
from custody.keys.trust import Accepted

ENTRIES_LIMIT = 10_000
"""Statements that one command accepts."""
LINE_LIMIT = 16 * 1_048_576
"""Bytes in one line of a report."""

_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reported:
    """The findings of a report, and the archive that they are of."""

    findings: tuple[Finding, ...]
    archive: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """By which fields one finding is told from the others; what is None is not asked for."""

    finding: str
    log: str | None = None
    sequence: int | None = None
    key: str | None = None
    sha256: str | None = None

    def __str__(self) -> str:
        named = (("log", self.log), ("sequence", self.sequence), ("key", self.key), ("sha256", self.sha256))
        return self.finding + "".join(f", {name} {value}" for name, value in named if value is not None)


def read_report(lines: Iterable[bytes]) -> Reported:
    """Read what `custody verify --json` printed.

    Raises:
        ConfigurationError: it is no such report, or was cut off before its verdict.
    """
    findings: list[Finding] = []
    for number, line in enumerate(lines, 1):
        if len(line) > LINE_LIMIT:
            raise ConfigurationError(f"line {number} of the report has more than {LINE_LIMIT} bytes: it is none")
        try:
            found: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
            if found.get("kind") == "finding":
                findings.append(_finding(found))
            elif found.get("kind") == "verdict":
                archive: str | None = msgspec.convert(found.get("archive"), str | None)
                return Reported(tuple(findings), archive)
        except (msgspec.MsgspecError, ValueError, KeyError, RecursionError):
            raise ConfigurationError(
                f"line {number} of the report is none that `custody verify --json` prints; give what it printed, whole"
            ) from None
    raise ConfigurationError(
        "the report has no verdict: it was cut off; give what `custody verify --json` prints, whole"
    )


def choose(reported: Reported, wanted: Wanted) -> Finding:
    """Return the one finding of a report that is meant.

    Raises:
        ConfigurationError: there is none, or more than one, or it needs no acceptance.
    """
    names = [one for one in reported.findings if one.finding == wanted.finding]
    matches = [
        one
        for one in names
        if all(
            asked is None or asked == getattr(one, field)
            for field, asked in (("log", wanted.log), ("key", wanted.key), ("sha256", wanted.sha256))
        )
        and (wanted.sequence is None or _covers(one, wanted.sequence))
    ]
    if not matches:
        others = f"; of that name it has {_listed(names)}" if names else ""
        raise ConfigurationError(f"the report has no finding {wanted}{others}")
    if len(matches) > 1:
        raise ConfigurationError(
            f"the report has {len(matches)} findings {wanted}; say which by --log, --sequence or --key:"
            f" {_listed(matches)}"
        )
    (chosen,) = matches
    if chosen.accepted:
        raise ConfigurationError(f"{chosen.finding} ({chosen.where}) is accepted already: {chosen.accepted}")
    return chosen


def named(wanted: Wanted) -> Finding:
    """Return the finding that fields alone name, for one whose report is not at hand.

    Raises:
        ConfigurationError: the fields name no finding of a kind that there is.
    """
    if wanted.finding not in CATALOGUE:
        raise ConfigurationError(f"there is no finding {wanted.finding!r}; `custody verify` says what there is")
    if wanted.key is None and (wanted.log is None or wanted.sequence is None):
        raise ConfigurationError(
            "say what was found: --from with the report, or --log and --sequence, or --key, as the report has them"
        )
    return Finding(
        finding=wanted.finding,
        message="named by its fields",
        severity=CATALOGUE[wanted.finding][0],
        log=wanted.log,
        sequence=wanted.sequence,
        key=wanted.key,
        sha256=wanted.sha256,
    )


def entries(judged: Finding, reason: str, by: str, at: str) -> list[Accepted]:
    """Return what `trust.json` is to say.

    Args:
        judged: the finding.
        reason: why it is accepted.
        by: who judged it.
        at: when, as custody writes times.

    Raises:
        ConfigurationError: it needs no acceptance, or cannot be named exactly enough.
    """
    if not (reason.strip() and by.strip()):
        raise ConfigurationError("an accepted finding says why (--reason) and who judged it (--by)")
    if judged.severity is Severity.NOTICE:
        raise ConfigurationError(f"{judged.finding} is a notice, and needs no acceptance")
    if judged.severity is Severity.TAMPERED and judged.sha256 is None:
        raise ConfigurationError(
            f"{judged.finding} is tampering, which is accepted by the exact digest of what was found, and this finding"
            f" has none: {judged.action}"
        )
    about_several = judged.through is not None and judged.through != judged.sequence
    if judged.key is not None and not about_several and judged.finding != "sequence-gap":
        return [Accepted(judged.finding, reason, by, at, key=judged.key, sha256=judged.sha256)]
    if judged.log is None or judged.sequence is None:
        raise ConfigurationError(f"{judged.finding} names neither an object nor a statement, so nothing can accept it")
    first = Accepted(judged.finding, reason, by, at, log=judged.log, sequence=judged.sequence, sha256=judged.sha256)
    if judged.severity is Severity.TAMPERED:
        # The digest is that of the first; the next verification names the next.
        return [first]
    last = judged.through if judged.through is not None else judged.sequence
    number = last - judged.sequence + 1
    if judged.count not in {1, number}:
        raise ConfigurationError(
            f"{judged.finding} stands for {judged.count} statements between {judged.sequence} and {last}, and not for"
            " all of them; see to what caused it instead"
        )
    if number > ENTRIES_LIMIT:
        raise ConfigurationError(
            f"{judged.finding} is about {number:,} statements, and at most {ENTRIES_LIMIT:,} are accepted at once;"
            " restore them instead"
        )
    return [
        first,
        *(
            Accepted(judged.finding, reason, by, at, log=judged.log, sequence=sequence)
            for sequence in range(judged.sequence + 1, last + 1)
        ),
    ]


_FIELDS: dict[str, Any] = {
    "log": str,
    "sequence": int,
    "through": int,
    "batch": int,
    "offset": int,
    "byte": int,
    "key": str,
    "expected": str,
    "found": str,
    "sha256": str,
    "accepted": str,
}


def _finding(found: dict[str, Any]) -> Finding:
    fields = {name: msgspec.convert(found[name], form) for name, form in _FIELDS.items() if name in found}
    return Finding(
        finding=msgspec.convert(found["finding"], str),
        message=msgspec.convert(found["message"], str),
        severity=Severity[msgspec.convert(found["severity"], str).upper()],
        count=msgspec.convert(found["count"], int),
        **fields,
    )


def _covers(one: Finding, sequence: int) -> bool:
    return one.sequence is not None and one.sequence <= sequence <= (one.through or one.sequence)


def _listed(findings: Sequence[Finding]) -> str:
    shown = "; ".join(
        one.where + (f", {one.key}" if one.key and one.key not in one.where else "") for one in findings[:_SHOWN]
    )
    return shown + (f"; and {len(findings) - _SHOWN} more" if len(findings) > _SHOWN else "")
