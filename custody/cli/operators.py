"""The operator's part: its commands, and where to find it.

The wheel has only `custody`. In a checkout of the project, `tasks` and `flows` are beside it.

Rules:
- Only the folder beside this package is searched. `tasks` or `flows` from the current folder, the search path or an
  installed package is never imported instead.
- The part is loaded only for one of its commands, the help or `custody config`.
- `COMMANDS` is the only list of its commands. Without a checkout, each of them prints where to get it, and the help
  names them in its last lines: the help lists only commands that can be run.
"""

import importlib
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_command

from custody.errors import ConfigurationError

if TYPE_CHECKING:
    from custody.settings import Settings

COMMANDS = (
    *("demo", "up", "deploy", "drain", "index", "roll", "audit", "backfill"),
    *("check", "status", "metrics", "alert", "detect", "new-epoch"),
)
"""The operator's commands, in the order in which the help lists them."""

PANEL = "Operators' commands"
WHERE = "a checkout of the project (its README: On your own Kafka and S3)"

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout(package: Path = _PACKAGE) -> Path | None:
    """Return the checkout's root, None if the package was installed without the operator's part.

    Args:
        package: the folder of `custody`.
    """
    root = package.parent
    # A folder of installed packages has no pyproject.toml.
    parts = (root / "pyproject.toml", root / "tasks" / "settings.py", root / "flows" / "operate" / "cli.py")
    return root if all(part.is_file() for part in parts) else None


def load(module: str, wanted: str) -> Any:
    """Import a module of the operator's part.

    Args:
        module: its name, in `tasks` or `flows`.
        wanted: the command that needs it, as the user wrote it.

    Raises:
        ConfigurationError: there is no checkout, another package of the same name is loaded, or a package that it needs
            is not installed.
    """
    root = checkout()
    if root is None:
        raise ConfigurationError(
            f"{wanted} is for operators, but only the auditor's part is installed here: run it from {WHERE}"
        )
    if sys.path[:1] != [str(root)]:
        sys.path.insert(0, str(root))
    for name in dict.fromkeys(["tasks", module.partition(".")[0]]):
        # Its `__init__` does next to nothing: importing it is safe, and shows where it is.
        origin = importlib.import_module(name).__file__
        if origin is None or Path(origin).resolve().parents[1] != root:
            raise ConfigurationError(
                f"{wanted} needs the package {name!r} in {root}, but another one of that name is loaded: {origin}"
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
    return commands


def known_settings() -> "type[Settings]":
    """Return the settings of this installation: the operator's in a checkout, else the auditor's."""
    if checkout() is None:
        from custody.settings import Settings

        return Settings
    operators: type[Settings] = load("tasks.settings", "`custody config`").Settings
    return operators
