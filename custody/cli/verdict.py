"""What `custody verify` and `custody copy` print for people: what to read first, the report, how it was made."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from custody.cli import render
from custody.errors import CustodyError, counted, escape
from custody.findings import Finding, joined
from custody.format.layout import ARCHIVE, AUDIT_LOG
from custody.verify.scope import moment_text

if TYPE_CHECKING:
    from custody.store.protocol import Store
    from custody.verify.report import Made, Report

_KEYS_SHOWN = 8
_HEADS_SHOWN = 20
_EXPLAINED = 8
_LOOKED_AT = 1_000
"""The most objects that are listed to say what is at a path without an archive."""
_NAMES_SHOWN = 8


def print_report(report: "Report", store: "Store") -> None:
    """Print a verification's report for people. The verdict is the last line, so that it stays on the screen.

    Args:
        report: the result.
        store: the archive, to say what is there if it is none.
    """
    from rich.text import Text

    said_once = replace(report, findings=joined(report.findings))
    out = render.console()
    first = first_line(said_once, store)
    if first:
        out.print(render.safe(first, style="bold"), soft_wrap=True)
    *parts, verdict = render.report(said_once)
    # If nothing at all could be read, the first line has said all there is to say.
    for part in [] if first and _is_out_of_reach(said_once) else parts:
        out.print(part, soft_wrap=isinstance(part, Text), crop=False)
    for line in (*explained(said_once.findings), *how_made(report.made), *heads(report)):
        out.print(render.safe(line), soft_wrap=True)
    out.print(verdict, soft_wrap=True)


def first_line(report: "Report", store: "Store") -> str | None:
    """Return what must be read first: nothing can be read here, or nothing here is an archive. None otherwise."""
    if _is_out_of_reach(report):
        (problem,) = (kept for kept in report.findings if kept.finding == "unreadable")
        return f"Nothing can be read: {problem.message}"
    missing = any(kept.finding == "archive" and kept.key == ARCHIVE and not kept.sha256 for kept in report.findings)
    if report.logs or report.archive is not None or not missing:
        return None
    return f"{report.url} has no {ARCHIVE} and no statement: is this the archive's path? {_there(store)}"


def _is_out_of_reach(report: "Report") -> bool:
    """Return whether each request failed, and all for one reason."""
    return not report.logs and [kept.finding for kept in report.findings] == ["unreadable"]


def _there(store: "Store") -> str:
    """Return in a sentence what lies at a path that is no archive."""
    try:
        keys = [info.key for info in islice(store.list(""), _LOOKED_AT)]
    except CustodyError as error:
        return f"It cannot be listed: {error}"
    inner = sorted(key.removesuffix(f"/{ARCHIVE}") for key in keys if key.endswith(f"/{ARCHIVE}"))
    if inner:
        return f"There is an archive in {', '.join(inner[:_NAMES_SHOWN])} below it: add that to the path."
    if not keys:
        return "Nothing is there."
    tops = Counter(f"{top}{slash}" for top, slash, _ in (key.partition("/") for key in keys))
    names = ", ".join(name for name, _ in tops.most_common(_NAMES_SHOWN))
    return f"There is {names}{', …' if len(tops) > _NAMES_SHOWN else ''}."


def explained(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield, once for each name among the findings, the command that says more."""
    commands = list(dict.fromkeys(kept.help for kept in findings if not kept.accepted))
    for command in commands[:_EXPLAINED]:
        yield f"`{command}` says more"
    if len(commands) > _EXPLAINED:
        yield "`custody explain` lists all findings"


def how_made(made: "Made") -> Iterator[str]:
    """Yield when, for how long, with which version and with which keys it was verified."""
    yield f"Verified {moment_text(made.at)}, in {made.seconds:,.1f} s, by custody {made.version}"
    for key in made.keys[:_KEYS_SHOWN]:
        kind = key.algorithm if key.checkable else f"{key.algorithm}, without its secret"
        yield f"Key      {key.id} ({kind}), from {', '.join(key.sources) or 'the caller'}"
    if not made.keys:
        yield "Key      none"
    if len(made.keys) > _KEYS_SHOWN:
        yield f"         and {counted(len(made.keys) - _KEYS_SHOWN, 'more key')}; --json has all"


def heads(report: "Report") -> Iterator[str]:
    """Yield the heads that were seen: log, size and root."""
    seen = [(log.log, log.size, log.root) for log in report.logs]
    if report.audits is not None and report.audits.size:
        seen.append((str(AUDIT_LOG), report.audits.size, report.audits.root.hex()))
    for name, size, root in seen[:_HEADS_SHOWN]:
        yield f"Head     {escape(name)} {size} {root or 'unknown'}"
    if len(seen) > _HEADS_SHOWN:
        yield f"         and {counted(len(seen) - _HEADS_SHOWN, 'more head')}; --json has all"
