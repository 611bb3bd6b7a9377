"""The operator's commands of `custody`, found by entry point. Prefect is imported inside them: it takes two seconds."""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from custody.errors import ConfigurationError

app = typer.Typer(name="operate", pretty_exceptions_enable=False)


def _import(name: str) -> Any:
    """Import a flow's module, and say what is missing where it was installed without the operator's packages."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] in {"custody", "flows", "tasks"}:
            raise
        raise ConfigurationError(
            f"the operator's commands need {error.name}, which is not installed: pip install 'custody[operate]'"
        ) from None


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--dir", help="Where the archive and the keyring go.", file_okay=False)
    ] = Path("custody-demo"),
    events: Annotated[int, typer.Option(min=1, help="Events to produce.")] = 60_000,
) -> None:
    """Run the main job here and now: an embedded Kafka, drained into a folder, verified, and tampered with."""
    _import("flows.demo").demo(folder, events)


@app.command()
def up() -> None:
    """Start what a small installation needs: Prefect's server and the scheduled deployments."""
    _import("flows.up").up()


@app.command()
def drain(
    once: Annotated[bool, typer.Option("--once", help="End when caught up, instead of following the topics.")] = False,
    seconds: Annotated[float | None, typer.Option(min=0, help="Time for this run, instead of the setting's.")] = None,
) -> None:
    """Drain Kafka into the archive, once, as the scheduled flow does."""
    _import("flows.drain").drain(once=once, seconds=seconds)


@app.command()
def status() -> None:
    """Show each log: its head, and how far it is behind Kafka."""
    _import("flows.status").status()
