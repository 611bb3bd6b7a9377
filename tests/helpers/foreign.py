"""A folder with packages that have the names of ours, and leave a mark where anything of them is imported."""

from pathlib import Path

_MARK = "imported"


def make_foreign(folder: Path) -> Path:
    """Make the folder, with every module that `custody` asks the operator's part for, and return it."""
    for name in ("flows/__init__", "flows/operate/__init__", "flows/operate/cli", "tasks/__init__", "tasks/settings"):
        module = folder / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(f"from pathlib import Path\nPath({str(folder / _MARK)!r}).touch()\n")
    return folder


def was_imported(folder: Path) -> bool:
    """Return whether anything in the folder was imported."""
    return (folder / _MARK).exists()
