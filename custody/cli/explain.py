"""`custody explain`: what a finding or an alert means, how it comes about, when nobody meant harm, and what to do.

The texts of findings are data, `custody/findings.toml`. `custody explain --markdown` makes docs/findings.md of them.
Those of alerts are the sections of docs/alerts.md, for operators alone: they have a checkout.
Of a problem that `custody status` prints, it says where to look.
"""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

import typer

from custody.cli import common, operators, terminal
from custody.cli.common import App
from custody.cli.terminal import echo
from custody.errors import ConfigurationError
from custody.findings import CATALOGUE

app = App()

_WIDTH = 80
_SECTIONS: Mapping[str, str] = {
    "causes": "How it comes about",
    "false_alarms": "When nobody meant harm",
    "steps": "What to do",
}
"""By field, the heading of a list."""
_PROBLEMS: Mapping[str, str] = {
    "archive-untrusted": "archive.json is not the one that is trusted or pinned: `custody explain archive`",
    "audit-failed": "the newest audit found something: `custody explain custody-audit-failed`",
    "audit-late": "no audit for too long: `custody explain custody-audit-silent`",
    "audit-missing": "there is no audit yet: `custody explain custody-audit-silent`",
    "audit-unreadable": "the signed audits cannot be read: `custody explain audit`",
    "alerts-nobody": "no alert reaches anybody: set `alert.urls`, then `custody alert --test`",
    "alerts-unreadable": "a URL of `alert.urls` cannot be read: correct it, then `custody alert --test`",
    "archive-unreachable": "the archive's storage does not answer: `custody check`",
    "clock": "statements have a time of the future: `custody explain custody-clock-wrong`",
    "heads-unchecked": "no usable key is here to check the heads with: `custody check`",
    "headroom": "Kafka deletes unarchived records soon: `custody explain custody-drain-headroom`",
    "index-cursor": "the search's position cannot be true: `custody explain custody-search-behind`",
    "index-late": "archived events cannot be searched yet: `custody explain custody-search-behind`",
    "index-unknown": "how far the search is cannot be said: `custody explain custody-search-behind`",
    "kafka-unreachable": "no broker answers, or it refuses this client: `custody check`",
    "lag": "records wait in Kafka for too long: `custody explain custody-drain-silent`, and docs/lag.md",
    "lag-unknown": "how long records wait cannot be said: docs/lag.md",
    "log-damaged": "statements are missing, or contradict a known head: `custody verify`, and docs/tampered.md",
    "log-unknown": "a log's head cannot be read: `custody check`, then `custody verify`",
    "lost": "Kafka deleted records before they were archived: `custody explain offset-lost`",
    "not-drained": "`kafka.topics` does not name the topic of a log: docs/settings.md",
    "quarantined": "too many records are no valid events: `custody explain custody-records-quarantined`",
    "silent": "a log has no statement for too long: `custody explain custody-drain-silent`",
    "topic-changed": "a topic does not continue its log: docs/topic-recreated.md",
    "topic-missing": "Kafka has no such topic: `custody explain custody-log-vanished`",
    "topic-refused": "the broker refuses this client a topic: docs/kafka.md",
    "topic-without-log": "records wait in a topic that has no log yet: `custody drain --once`, and docs/lag.md",
    "unreadable": "no client could decode records of Kafka: `custody explain custody-records-unreadable`",
}
"""By the kind of a problem that `custody status` prints, what it is and where to look."""
_PAGE = """\
# Findings

A reference: what each finding of `custody verify` and of the audits means.
`custody explain NAME` prints the same on a terminal.
This page is made from `custody/findings.toml`.
Change that file, then run `custody explain --markdown > docs/findings.md`.

**Before anything else, if a finding is `tampered`:** change nothing. Drains may go on: they only add.
Stop only what deletes: the roll, and lifecycle rules of the bucket. Only for `head-rollback` stop the drain too.
Save the output of `custody verify ARCHIVE --trust trust.json --json > report.jsonl`, the time, and the logs of the
machines and of the store. What is overwritten now cannot be shown later.

| severity | exit code | meaning |
|---|---|---|
| notice | 3 | good to know. The verification is a success |
| policy | 10 | the evidence is whole; a rule about it is broken |
| incomplete | 11 | something is missing |
| unverifiable | 12 | something could not be checked |
| tampered | 13 | something was changed, added or removed, and a signature or hash shows it |

The severity below is the usual one. The text says where a finding has another one. An accepted finding is a notice.

In the commands, replace the words in capitals.
"""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What people should know about a finding.

    Attributes:
        name: the finding's name.
        severity: its usual severity.
        title: the finding in a few words.
        meaning: what was seen, and what it says about the evidence.
        causes: how it comes about, the likely first.
        false_alarms: harmless ways to the same finding.
        steps: what to do, in order.
    """

    name: str
    severity: str
    title: str
    meaning: str
    causes: Sequence[str]
    false_alarms: Sequence[str]
    steps: Sequence[str]

    def lines(self) -> Iterator[str]:
        """Yield the explanation for a terminal."""
        yield f"{self.name} ({self.severity}): {self.title}"
        yield ""
        yield from _wrap(self.meaning)
        for title, items in self._lists():
            yield ""
            yield title
            for number, item in enumerate(items, 1):
                mark = f"  {number}. " if title == _SECTIONS["steps"] else "  - "
                yield from _wrap(mark + item, len(mark))

    def markdown(self) -> Iterator[str]:
        """Yield the explanation for the page."""
        yield f"## {self.name}"
        yield ""
        yield f"**{self.title}** ({self.severity}). {self.meaning}"
        for title, items in self._lists():
            yield ""
            yield f"{title}:"
            yield ""
            for number, item in enumerate(items, 1):
                yield f"{f'{number}.' if title == _SECTIONS['steps'] else '-'} {item}"

    def _lists(self) -> Iterator[tuple[str, Sequence[str]]]:
        for field, title in _SECTIONS.items():
            yield title, getattr(self, field)


def _wrap(text: str, indent: int = 0) -> list[str]:
    return terminal.wrap(text, _WIDTH, indent)


@cache
def explanations() -> Mapping[str, Explanation]:
    """Return the explanation of each finding, by its name."""
    texts = tomllib.loads(files("custody").joinpath("findings.toml").read_text(encoding="utf-8"))
    return {
        name: Explanation(name=name, severity=CATALOGUE[name][0].name.lower(), **texts[name]) for name in sorted(texts)
    }


def page() -> str:
    """Return docs/findings.md."""
    parts = [_PAGE, *("\n".join((*each.markdown(), "")) for each in explanations().values())]
    return "\n".join(parts)


def _problem_lines(name: str) -> Iterator[str]:
    """Yield what a kind of problem is and where to look, for a terminal."""
    yield f"{name} (a problem of `custody status`)"
    yield ""
    yield from _wrap(f"{_PROBLEMS[name][:1].upper()}{_PROBLEMS[name][1:]}.")
    yield from _wrap("`custody status` prints beside it what to do. docs/commands.md lists all problems.")


def _list_lines(chosen: Sequence[Explanation]) -> Iterator[str]:
    """Yield a line for each of these findings."""
    names, severities = (max(len(getattr(each, field)) for each in chosen) for field in ("name", "severity"))
    for each in chosen:
        yield f"{each.name:<{names}}  {each.severity:<{severities}}  {each.title}"


@app.command(rich_help_panel=common.VERIFY, epilog="custody explain segment-hash")
def explain(
    name: Annotated[
        str | None,
        typer.Argument(
            help="The name of a finding, such as segment-hash, of an alert, or of a problem of `custody status`; or a"
            " severity, to list its findings. Default: list all findings and alerts."
        ),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all of them, as docs/findings.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: a finding each.")] = False,
) -> None:
    """Explain a finding or an alert: what it means, how it comes about, when nobody meant harm, and what to do."""
    if markdown and (name is not None or as_json):
        other = "--json" if as_json else f"NAME ({(name or '')[:100]!r})"
        raise ConfigurationError(
            f"--markdown prints all findings, as docs/findings.md: leave {other} out, or --markdown"
        )
    known, sections = explanations(), _alerts()
    if name is not None:
        name = _as_listed(name, {*known, *sections, *_PROBLEMS, *(each.severity for each in known.values())})
    if name is not None and name not in known and (name in sections or name in _PROBLEMS):
        text = "\n".join(sections[name]) if name in sections else _PROBLEMS[name]
        if as_json:
            common.print_json({"name": name, "text": text})
        else:
            alert = (f"{name} (an alert)", *_wrapped(sections.get(name, ())))
            echo("\n".join(alert if name in sections else _problem_lines(name)))
        return
    several = [each for each in known.values() if name in {None, each.severity}]
    chosen = several or [_explanation(name or "")]
    if as_json:
        common.print_json(*map(asdict, chosen))
    elif markdown:
        echo(page().removesuffix("\n"))
    elif several:
        echo("\n".join(_list_lines(several)))
        if name is None and sections:
            echo("\n".join(["", "Alerts", *(f"  {alert}" for alert in sections)]))
        echo("\n`custody explain NAME` says more about one.")
    else:
        echo("\n".join(chosen[0].lines()))
        if chosen[0].name in _PROBLEMS:
            echo("\n".join(["", *_problem_lines(chosen[0].name)]))


def _as_listed(name: str, names: Collection[str]) -> str:
    """Return a name as it is listed: written in capitals or with `_`, it is the same one. Others stay as they are."""
    plain = name.strip().lower().replace("_", "-")
    return name if name in names or plain not in names else plain


def _explanation(name: str) -> Explanation:
    """Return the explanation of a finding.

    Raises:
        ConfigurationError: there is no finding of this name.
    """
    known = explanations()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name[:100].lower(), [*known, *_alerts(), *_PROBLEMS], 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "'custody explain' lists all of them"
    raise ConfigurationError(f"there is no finding {name[:100]!r}; {hint}")


def _alerts() -> Mapping[str, Sequence[str]]:
    """Return the lines of each section of docs/alerts.md, by its name; none without a checkout."""
    root = operators.checkout()
    page = root / "docs" / "alerts.md" if root else None
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in page.read_text(encoding="utf-8").splitlines() if page and page.exists() else ():
        if heading := re.fullmatch(r"#+ (.*)", line):
            # Other headings have spaces, and are nobody's name.
            lines = sections.setdefault(heading[1], []) if " " not in heading[1] else []
        else:
            lines.append(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line))
    return sections


def _wrapped(lines: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a page, wrapped for a terminal."""
    for line in "\n".join(lines).rstrip().splitlines():
        mark = re.match(r"(?:[0-9]+\. |- )?", line)
        yield from _wrap(line, mark.end() if mark else 0) or [""]
