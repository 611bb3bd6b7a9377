"""`custody explain`: what a finding or an alert means, how it comes about, when nobody meant harm, and what to do.

The texts of findings are data, `custody/findings.toml`. `custody explain --markdown` makes docs/findings.md of them.
Those of alerts are the sections of docs/alerts.md, for operators alone: they have a checkout.
"""

import difflib
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Annotated

import typer

from custody.cli import common, operators
from custody.cli.common import App
from custody.cli.terminal import echo
from custody.errors import ConfigurationError
from custody.findings import CATALOGUE

app = App()

_WIDTH = 80
_BOUND = "\u00a0"
"""A space at which no line is broken."""
_SECTIONS: Mapping[str, str] = {
    "causes": "How it comes about",
    "false_alarms": "When nobody meant harm",
    "steps": "What to do",
}
"""By field, the heading of a list."""
_PAGE = """\
# Findings

A reference: what each finding of `custody verify` and of the audits means.
`custody explain NAME` prints the same on a terminal.
This page is made from `custody/findings.toml`.
Change that file, then run `custody explain --markdown > docs/findings.md`.

**Before anything else, if a finding is `tampered`:** change nothing, and stop nothing but the writer.
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
    """Return a paragraph as lines for a terminal. A command that fits in a line stays in one, to be copied."""
    bound = re.sub(
        r"`[^`]*`", lambda code: code[0].replace(" ", _BOUND) if len(code[0]) <= _WIDTH - indent else code[0], text
    )
    lines = textwrap.wrap(bound, _WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False, break_long_words=False)
    return [line.replace(_BOUND, " ") for line in lines]


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


@app.command(rich_help_panel=common.VERIFY, epilog="custody explain segment-hash")
def explain(
    name: Annotated[
        str | None,
        typer.Argument(help="The name of a finding, such as segment-hash, or of an alert. Default: list all findings."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all of them, as docs/findings.md.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON lines: a finding each.")] = False,
) -> None:
    """Explain a finding or an alert: what it means, how it comes about, when nobody meant harm, and what to do."""
    known = explanations()
    if name is not None and name in (sections := _alerts()):
        if as_json:
            common.print_json({"name": name, "text": "\n".join(sections[name])})
        else:
            echo("\n".join([f"{name} (an alert)", *_wrapped(sections[name])]))
        return
    chosen = list(known.values()) if name is None else [_explanation(name)]
    if as_json:
        common.print_json(*map(asdict, chosen))
    elif markdown:
        echo(page().removesuffix("\n"))
    elif name is None:
        names, severities = (max(len(getattr(each, field)) for each in chosen) for field in ("name", "severity"))
        echo("\n".join(f"{each.name:<{names}}  {each.severity:<{severities}}  {each.title}" for each in chosen))
        echo("\n`custody explain NAME` says more about one.")
    else:
        echo("\n".join(chosen[0].lines()))


def _explanation(name: str) -> Explanation:
    """Return the explanation of a finding.

    Raises:
        ConfigurationError: there is no finding of this name.
    """
    known = explanations()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name[:100], [*known, *_alerts()], 3, 0.5)
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
