"""Make the reference pages from the code: `make docs-reference`. A test compares the pages with what this makes.

Rules:
- docs/options.md is made whole: every command with its arguments, options and exit codes, from its own help.
- In the tables of docs/settings.md the names, their order and the defaults come from the code. The meanings stay as
  somebody wrote them; a new setting begins with the description that `custody config` shows.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from typer.main import get_command

from custody.cli.common import COMMON_PANEL, EXIT_CODES, PANELS, parameter_row
from custody.cli.main import app
from custody.settings import OPERATORS_SECTIONS, S3_MEANINGS
from tasks.settings import Settings

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
    codes: Mapping[int, str] = EXIT_CODES.get(name.split()[1], {}) if len(name.split()) == 2 else {}
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


def pages() -> dict[Path, str]:
    """Return the text that each page should have."""
    settings = PAGES / "settings.md"
    return {settings: settings_page(settings.read_text()), PAGES / "options.md": options_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text)
