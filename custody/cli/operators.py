"""The operator's part: its commands, and where it is found.

The wheel holds `custody` alone. In a checkout of the project, `tasks` and `flows` lie beside it.

Rules:
- It is looked for in one place, beside this package. What the current folder, the search path or an installed package
  offers under the names `tasks` and `flows` is never imported in its place.
- It is loaded only when one of its commands, the help or `custody config` is asked for.
- `COMMANDS` is the one list of its commands: what is not in it is no command. With the wheel alone each of them says
  where it is to be had. The help then names them in its last lines and does not list them: what it lists can be run.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from custody.errors import ConfigurationError
from custody.settings import Settings

COMMANDS = (
    "demo",
    "up",
    "drain",
    "index",
    "roll",
    "audit",
    "backfill",
    "status",
    "new-epoch",
)
"""The operator's commands, in the order in which the help lists them."""

PANEL = "Operators' commands"
WHERE = "a checkout of the project (its README: On your own Kafka and S3)"

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout(package: Path = _PACKAGE) -> Path | None:
    """Return the checkout's root, None where the package was installed without the operator's part.

    Args:
        package: the folder of `custody`.
    """
    root = package.parent
    # Where packages are installed there is no pyproject.toml, whatever they are called.
    parts = (root / "pyproject.toml", root / "tasks" / "settings.py", root / "flows" / "operate" / "cli.py")
    return root if all(part.is_file() for part in parts) else None


def load(module: str, wanted: str) -> Any:
    """Import a module of the operator's part.

    Args:
        module: its name, in `tasks` or `flows`.
        wanted: what it is for, as a user asked for it.

    Raises:
        ConfigurationError: there is no checkout, something else has taken the names of its packages, or a package that
            it needs is not installed.
    """
    root = checkout()
    if root is None:
        raise ConfigurationError(
            f"{wanted} is for operators, and only the auditor's part is installed here: run it from {WHERE}"
        )
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    for name in dict.fromkeys(["tasks", module.partition(".")[0]]):
        # It holds a docstring alone, so that importing it is safe and shows where it lies.
        origin = importlib.import_module(name).__file__
        if origin is None or Path(origin).resolve().parents[1] != root:
            raise ConfigurationError(
                f"{wanted} needs the package {name!r} in {root}, and another one of that name is loaded: {origin}"
            )
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"custody", "flows", "tasks"}:
            raise
        raise ConfigurationError(
            f"{wanted} needs {error.name}, which is not installed: run `uv sync` in the checkout"
        ) from None


def command(name: str) -> Any:
    """Return one of `COMMANDS`.

    Raises:
        ConfigurationError: there is no checkout.
    """
    return _commands(load("flows.operate.cli", f"`custody {name}`").app)[name]


@cache
def _commands(app: Any) -> dict[str, Any]:
    commands: dict[str, Any] = getattr(get_command(app), "commands", {})
    for one in commands.values():
        one.rich_help_panel = PANEL
    return commands


def known_settings() -> type[Settings]:
    """Return the settings of this installation: the operator's in a checkout, else the auditor's."""
    if checkout() is None:
        return Settings
    operators: type[Settings] = load("tasks.settings", "`custody config`").Settings
    return operators
