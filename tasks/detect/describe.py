"""What people should know about a rule: for `custody detect explain` and docs/rules.md, which is made of the files."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from custody.errors import counted
from tasks.detect import folder
from tasks.detect.rule import LEVELS, Rule

_UNITS: Final = (
    ("day", timedelta(days=1)),
    ("hour", timedelta(hours=1)),
    ("minute", timedelta(minutes=1)),
    ("second", timedelta(seconds=1)),
)
_PAGE: Final = """\
# Rules

A reference: the rules that come with custody, made from their files by `make docs-reference`.
`custody detect explain NAME` prints the same on a terminal, and the SQL.
[detect.md](detect.md) says what runs when, and how to write rules of your own.

Matches of one group within the cool-down are one alert. It is over when the group was quiet for so long.
"""


def facts(rule: Rule) -> Iterator[tuple[str, str]]:
    """Yield what a rule's numbers are, by name."""
    yield "level", rule.level
    yield "group", ", ".join(rule.group_by) or "none: all matches are one group"
    yield "window", span_text(rule.window) if rule.window else "none: single events, or what is remembered"
    yield "threshold", threshold_text(rule)
    yield "cool-down", span_text(rule.cool_down)
    yield "kind", "Sigma" if rule.kind == "sigma" else "SQL"
    yield "id", rule.id


def threshold_text(rule: Rule) -> str:
    """Return a rule's threshold in words."""
    if rule.threshold is None:
        return "none: one match is enough, or the rule's SQL decides"
    return f"{rule.threshold:,.10g}"


def span_text(span: timedelta) -> str:
    """Return a span of time in its largest whole unit, such as `90 minutes`."""
    for noun, unit in _UNITS:
        if span % unit == timedelta(0):
            return counted(span // unit, noun)
    return f"{span.total_seconds():g} seconds"


def page() -> str:
    """Return docs/rules.md."""
    rules = folder.load([folder.SHIPPED])
    rows = [
        f"| [{rule.name}](#{rule.name}) | {rule.level} | {rule.title} |"
        for rule in sorted(rules, key=lambda rule: (-LEVELS.index(rule.level), rule.name))
    ]
    table = "\n".join(["| rule | level | what it finds |", "|---|---|---|", *rows, ""])
    return "\n".join([_PAGE, table, *("\n".join(_section(rule)) for rule in rules)])


def _section(rule: Rule) -> Iterator[str]:
    yield from (f"## {rule.name}", "", f"**{rule.title}.** {rule.description}", "")
    yield from ("| | |", "|---|---|")
    yield from (f"| {name} | {text} |" for name, text in facts(rule))
    yield ""
    if rule.false_positives:
        yield from ("When nobody meant harm:", "", *(f"- {reason}" for reason in rule.false_positives), "")
    yield from (f"What to do: {rule.advice}", "")
