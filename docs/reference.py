"""Make the reference pages from the code: `make docs-reference`. A test compares the pages with what this makes.

Rules:
- These pages are made whole: docs/options.md of the commands' own help, docs/views.md of the list of SQL's tables,
  docs/findings.md of the explanations of findings, and docs/rules.md of the rules that come with custody.
- In five pages somebody wrote the text, and the tables between two comments are made: the exit codes in
  docs/commands.md, the fields of the six types in docs/events.md, the metrics in docs/metrics.md, the attributes in
  docs/ocsf.md, and what is reckoned from docs/figures.md in docs/scale.md.
- In the tables of docs/settings.md the names, their order and the defaults come from the code. The meanings stay as
  somebody wrote them; a new setting begins with the description that `custody config` shows.
"""

import dataclasses
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel
from typer.main import get_command

from custody.cli import explain
from custody.cli.common import COMMON_PANEL, EVERY_EXIT_CODE, EXIT_CODES, PANELS, parameter_row
from custody.cli.main import app
from custody.format.events import EVENT_TYPES, Event
from custody.query import ocsf, views
from custody.settings import OPERATORS_SECTIONS, S3_MEANINGS
from tasks.detect import describe
from tasks.metrics.catalogue import BUCKETS, CATALOGUE
from tasks.settings import Settings
from tests.benchmarks import simulation

PAGES = Path(__file__).resolve().parent
MIB = 1024 * 1024

# --- the settings


def default(value: object, description: str) -> str:
    """Return how a table shows a setting's default."""
    elsewhere = re.search(r"default: ([a-z]+\.[a-z_]+)$", description)
    if elsewhere:
        return f"`{elsewhere[1]}`"
    match value:
        case bool():
            return str(value).lower()
        case int() if value >= MIB and value % MIB == 0:
            return f"{value // MIB} MiB"
        case int() | float():
            return str(value)
        case [_, *_]:
            return f"`{', '.join(map(str, value))}`"
        case str() | Path() if str(value):
            return f"`{value}`"
        case _:
            return "none"


def fields(model: BaseModel) -> Iterator[tuple[str, object, str]]:
    """Yield the name, default and description of each setting of a section, and of each setting without one."""
    for name, info in type(model).model_fields.items():
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from ((f"{name}.{inner}", *rest) for inner, *rest in fields(value))  # type: ignore[misc]
        elif dataclasses.is_dataclass(value):
            yield from ((f"{name}.{option}", getattr(value, option), text) for option, text in S3_MEANINGS.items())
        else:
            yield name, value, info.description or ""


NAMES = "`[a-z0-9_.]+`(?:, `[a-z0-9_.]+`)*"
PARTS = ("## For everybody", "## For the operator")


def settings_page(page: str) -> str:
    """Return the page of settings with each table's names and defaults as the code has them."""
    known = {name: (value, description) for name, value, description in fields(Settings.model_construct())}
    meanings: dict[str, str] = {}
    for names, meaning in re.findall(rf"^\| ({NAMES}) \| [^|]+ \| (.+) \|$", page, re.MULTILINE):
        meanings |= dict.fromkeys(re.findall(r"`([^`]+)`", names), meaning)
    for heading in PARTS:
        rows = ["| setting | default | meaning |", "|---|---|---|"]
        for name, (value, text) in known.items():
            if (name.partition(".")[0] in OPERATORS_SECTIONS) == (heading == PARTS[1]):
                rows.append(f"| `{name}` | {default(value, text)} | {meanings.get(name, cell(text))} |")
        before, after = page.split(heading)
        start, end = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE).span()  # type: ignore[union-attr]
        page = before + heading + after[:start] + "\n".join(rows) + "\n" + after[end:]
    return page


# --- the commands


def commands(group: Any, prefix: str = "custody") -> Iterator[tuple[str, str, Any]]:
    """Yield each command's panel, whole name and object, in the order of the help."""
    context = group.make_context(prefix, [], resilient_parsing=True)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        panel = getattr(command, "rich_help_panel", None)
        if hasattr(command, "list_commands"):
            yield from ((panel, inner, leaf) for _, inner, leaf in commands(command, f"{prefix} {name}"))
        else:
            yield panel, f"{prefix} {name}", command


def cell(text: str | None) -> str:
    """Return a text as one cell of a table."""
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;").rstrip(".")


def section(name: str, command: Any) -> str:
    """Return what the page says of a command: its first paragraph, arguments, options, example, exit codes."""
    context = command.make_context(name, [], resilient_parsing=True)
    rows = [
        f"| `{names}` | {cell(text)} |"
        for option in command.params
        if getattr(option, "rich_help_panel", None) != COMMON_PANEL and "--help" not in option.opts
        for names, text in filter(None, [parameter_row(option, context)])
    ]
    parts = [f"### {name}", cell((command.help or "").partition("\n\n")[0]) + "."]
    if rows:
        parts.append("\n".join(["| argument or option | meaning |", "|---|---|", *rows]))
    codes: Mapping[int, str] = EXIT_CODES.get(name.partition(" ")[2], {})
    if codes:
        parts.append("Exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in codes.items()) + ".")
    return "\n\n".join(parts)


def options_page() -> str:
    """Return the page of all commands with their options."""
    parts = [
        "# Every command and option",
        "A reference, made from the code by `make docs-reference`. `custody COMMAND --help` adds an example.\n"
        "[commands.md](commands.md) has the common options, JSON output, and what each exit code asks you to do.",
    ]
    every = sorted(commands(get_command(app)), key=lambda entry: PANELS.index(entry[0]))
    for panel, group in itertools.groupby(every, key=lambda entry: entry[0]):
        parts += [f"## {panel}", *(section(name, command) for _, name, command in group)]
    return "\n\n".join(parts) + "\n"


# --- the exit codes


def exit_codes() -> Iterator[str]:
    """Yield the table of every command's exit codes. Commands that share a list are one row."""
    yield from ("| command | code | meaning, and what to do |", "|---|---|---|")
    shared: list[tuple[list[str], Mapping[int, str]]] = []
    for name, codes in EXIT_CODES.items():
        if shared and shared[-1][1] is codes:
            shared[-1][0].append(f"`custody {name}`")
        else:
            shared.append(([f"`custody {name}`"], codes))
    for names, codes in [*shared, (["every command, if its rows above do not say otherwise"], EVERY_EXIT_CODE)]:
        for number, (code, meaning) in enumerate(codes.items()):
            options = re.sub(r"--[a-z-]+", r"`\g<0>`", cell(meaning))
            yield f"| {'' if number else ', '.join(names)} | {code} | {options} |".replace("|  |", "| |")


# --- the events


def value_rule(annotation: Any) -> str:
    """Return what a field's value must be, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [part for part in arguments[1:] if part.ge is not None]
        return f"{value_rule(arguments[0])}{''.join(map(_bounds, bounds))}"
    if origin in {typing.Union, types.UnionType}:
        (inner,) = (part for part in arguments if part is not type(None))
        return f"{value_rule(inner)}, or null"
    if origin is typing.Literal:
        *others, last = (f"`{value}`" for value in arguments)
        return f"{', '.join(others)} or {last}"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", list: "list", dict: "object"}
    return names[origin or annotation]


def _bounds(bound: msgspec.Meta) -> str:
    if bound.le is None:
        return f", at least {bound.ge}"
    return f", {'0' if bound.ge == 0 else '-2^63'} to 2^63-1"


def event_fields(kind: type[Event], inherited: set[str]) -> Iterator[str]:
    """Yield a table's row for each field of a type but the inherited ones."""
    yield from ("| field | required | value | meaning |", "|---|---|---|---|")
    for field in msgspec.structs.fields(kind):
        if field.name not in inherited:
            meanings = (getattr(part, "description", None) for part in field.type.__metadata__)
            required = "yes" if field.required else "no"
            yield f"| `{field.name}` | {required} | {value_rule(field.type)} | {next(filter(None, meanings))} |"


def events() -> Iterator[str]:
    """Yield the fields of the six types of events."""
    common = set(Event.__struct_fields__)
    yield from ("### Fields of all six types", "", *event_fields(Event, set()))
    for name, kind in EVENT_TYPES.items():
        yield from ("", f"### {name}", "", str(kind.__doc__), "", *event_fields(kind, common))


# --- the metrics


def metrics() -> Iterator[str]:
    """Yield the table of metrics, and the bounds of the histogram."""
    yield from ("| metric | type | labels | meaning | source |", "|---|---|---|---|---|")
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {cell(metric.help)} | {metric.source} |"
    yield ""
    yield f"The bounds of the histogram, in seconds: {', '.join(f'{bound:g}' for bound in BUCKETS)}."


# --- the pages

MADE: Mapping[str, tuple[str, Callable[[], Iterator[str]]]] = {
    "commands.md": ("custody/cli/common.py", exit_codes),
    "events.md": ("custody/format/events.py", events),
    "ocsf.md": ("custody/query/ocsf.py", ocsf.table),
    "metrics.md": ("tasks/metrics/catalogue.py", metrics),
    "scale.md": ("tests/benchmarks/simulation.py", lambda: simulation.page(simulation.default())),
}
"""By page, the module whose values the part between the comments has, and what makes that part."""


def with_made_part(name: str, page: str) -> str:
    """Return a page with the part between its two comments as the code has it."""
    source, lines = MADE[name]
    begin, end = f"<!-- From {source}, by `make docs-reference` -->\n", "\n<!-- End -->\n"
    before, _, rest = page.partition(begin)
    return "".join((before, begin, "\n", *(f"{line}\n" for line in lines()), end, rest.partition(end)[2]))


def pages() -> dict[Path, str]:
    """Return the text that each page should have."""
    settings = PAGES / "settings.md"
    return {
        settings: settings_page(settings.read_text()),
        PAGES / "options.md": options_page(),
        PAGES / "findings.md": explain.page(),
        PAGES / "views.md": views.page(),
        PAGES / "rules.md": describe.page(),
        **{PAGES / name: with_made_part(name, (PAGES / name).read_text()) for name in MADE},
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
