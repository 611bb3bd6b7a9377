"""Renders a report as one HTML page: no script, no network, and it prints well.

All text from the archive is foreign: control characters become escapes, and the template escapes HTML.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from custody.archive.audit_findings import StatedFinding
from custody.errors import escape
from custody.findings import Severity
from custody.format.times import duration_text, parse_time
from custody.report import charts
from custody.report.facts import Facts
from custody.report.logs import LogFact

FINDINGS_SHOWN = 5_000
"""Findings that the page has in full. With more, no browser opens it; the page says where all are."""
SOURCES_SHOWN = 100
DETECTIONS_SHOWN = 200
NOTHING = "\N{EN DASH}"
_TYPES_SHOWN = 12
_EVIDENCE_SHOWN = 20_000
"""Characters of signed texts that contradict each other, for one finding."""
VERDICTS: Mapping[Severity | None, tuple[str, str, str, str]] = {
    None: ("good", "✓", "VERIFIED", "The audit found nothing wrong in what it read."),
    Severity.NOTICE: (
        "good",
        "✓",
        "VERIFIED, WITH NOTICES",
        "The audit found nothing wrong in what it read. Read the notices.",
    ),
    Severity.POLICY: (
        "policy",
        "▲",
        "AGAINST POLICY",
        "Nothing is missing, but a rule that protects the evidence is broken.",
    ),
    Severity.INCOMPLETE: ("bad", "✗", "INCOMPLETE", "Something that was archived, or should have been, is missing."),
    Severity.UNVERIFIABLE: ("unknown", "?", "NOT VERIFIABLE", "Something could not be checked, so it proves nothing."),
    Severity.TAMPERED: ("bad", "✗", "TAMPERED", "Somebody changed, removed or added something."),
}
"""Of each severity: the class of its colour, its sign, its words, and a sentence."""
_UNVERIFIED = ("unknown", "?", "UNVERIFIED", "No trusted key is at hand, so nothing shows who signed the audit.")


def render(facts: Facts) -> bytes:
    """Return the page."""
    environment = Environment(
        loader=PackageLoader("custody.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters |= {
        "time": _time,
        "count": lambda value: f"{value:,}",
        "size": charts.size_text,
        "wait": charts.wait_text,
        "ratio": lambda tally: f"{tally.inflated / tally.stored:.1f}" if tally.stored else NOTHING,
        "duration": lambda days: duration_text(days * 86_400),
    }
    buckets, unit = facts.figures.buckets(), facts.figures.unit
    text = environment.get_template("page.html").render(
        facts=facts,
        statement=facts.statement,
        banner=_banner(facts),
        findings=[_card(each) for each in facts.audits.findings[:FINDINGS_SHOWN]],
        urgent=_is_urgent(facts),
        earlier=[(audit, _card(each)) for audit, each in facts.audits.open[:FINDINGS_SHOWN]],
        counts=_counts(facts),
        verdict_of_log=lambda log: _verdict_of_log(facts, log),
        row_verdict=lambda audit: _row_verdict(audit),
        keys=[_key(facts, key) for key in facts.reader.keys],
        charts=charts.draw(buckets, unit),
        buckets=buckets,
        bucket_name=lambda bucket: bucket.name(unit),
        unit=unit,
        types=_types(facts),
        shown=FINDINGS_SHOWN,
        detections=[(_level(row.level), row) for row in facts.detections.rows[:DETECTIONS_SHOWN]],
        sources=(facts.sources or [])[:SOURCES_SHOWN],
        moment=lambda seconds: _time(datetime.fromtimestamp(seconds, UTC)),
    )
    return text.encode("utf-8", "backslashreplace")


def _safe(value: Any) -> Any:
    # Markup, such as the output of a macro, is ours.
    return escape(value) if type(value) is str else value


def _time(value: str | datetime | None) -> str:
    """Return a time in UTC to the second."""
    if value is None:
        return NOTHING
    try:
        moment = parse_time(value) if isinstance(value, str) else value.astimezone(UTC)
    except ValueError:
        return str(value)
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _banner(facts: Facts) -> tuple[str, str, str, str]:
    colour, sign, words, sentence = VERDICTS[facts.severity]
    if not facts.reader.keys and colour in {"good", "policy"}:
        return _UNVERIFIED
    if not facts.reader.keys:
        words = f"{words}, UNVERIFIED"
    return colour, sign, words, sentence


def _is_urgent(facts: Facts) -> bool:
    """Return whether findings come right after the head: there are some, and more than notices."""
    return bool(facts.audits.findings or facts.audits.open) and (facts.severity or 0) > Severity.NOTICE


def _row_verdict(audit: Any) -> str:
    return str(audit.verdict) if "findings" in audit.counts else "no verdict: a record of the roll"


def _verdict_of_log(facts: Facts, log: LogFact) -> tuple[str, str, str]:
    """Return the class of a log's verdict, its sign, and its words."""
    seen = [problem.severity for problem in facts.problems if problem.log == log.name]
    worst = max([*seen, *([log.severity] if log.severity else [])], default=None)
    if worst is None and log.last_audit is None:
        return "unknown", "?", "not audited"
    if worst is None and not facts.reader.keys:
        return _UNVERIFIED[0], "?", "unverified"
    colour, sign, words, _ = VERDICTS[worst]
    return colour, sign, words.lower()


def _card(each: StatedFinding) -> dict[str, Any]:
    colour, sign, words, _ = VERDICTS[each.severity]
    where = [each.log] if each.log else []
    if each.sequence is not None:
        first, through = each.sequence, each.through
        where.append(f"sequence {first}" if through in {None, first} else f"sequences {first} to {through}")
    places = ("batch", each.batch), ("offset", each.offset), ("byte", each.byte)
    where += [f"{name} {value}" for name, value in places if value is not None]
    return {
        "name": each.finding,
        "colour": colour,
        "sign": sign,
        "severity": words.lower() if each.severity is not Severity.NOTICE else "notice",
        "where": ", ".join(where) or "the archive as a whole",
        "evidence": [(text[:_EVIDENCE_SHOWN].splitlines(), len(text) > _EVIDENCE_SHOWN) for text in each.evidence],
        "key": each.key,
        "message": each.message,
        "action": each.action,
        "expected": each.expected,
        "found": each.found,
        "sha256": each.sha256,
        "accepted": each.accepted,
        "count": each.count,
    }


def _counts(facts: Facts) -> list[tuple[str, int]]:
    """Return how many findings there are of each severity, the worst first."""
    by = [each.severity for each in facts.audits.findings]
    return [(name.name.lower(), by.count(name)) for name in sorted(Severity, reverse=True) if name in by]


def _key(facts: Facts, key: Any) -> dict[str, Any]:
    signed = any(id_ == key.id for id_, _ in facts.audit.signed_by)
    checkpoints = any(log.checkpoint and key.id in log.checkpoint.signers for log in (*facts.logs, facts.audit_log))
    uses = [words for words, used in (("this audit", signed), ("newest checkpoints", checkpoints)) if used]
    return {
        "id": key.id,
        "algorithm": key.algorithm,
        "fingerprint": sha256(key.public).hexdigest() if key.public else None,
        "here": key.checkable,
        "from_": key.from_,
        "to": key.to,
        "ended": key.until is not None,
        "signed": " and ".join(uses),
    }


def _level(level: str) -> str:
    """Return the class of the colour of an alert's level."""
    return {"critical": "bad", "high": "bad", "medium": "policy", "low": "good"}.get(level, "unknown")


def _types(facts: Facts) -> list[tuple[str, int, float]]:
    """Return the commonest event types, with their share of the largest in percent."""
    top = facts.figures.top_types(_TYPES_SHOWN)
    most = max((count for _, count in top), default=0) or 1
    return [(name if len(name) <= 80 else f"{name[:79]}…", count, 100 * count / most) for name, count in top]
