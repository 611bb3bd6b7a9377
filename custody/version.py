"""What this program is: its distribution, version and commit."""

from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path

DISTRIBUTION = "custody-archive"
"""The distribution that has this package. The one called `custody` on PyPI is somebody else's."""
_PACKAGE = Path(__file__).parent
_COMMIT = _PACKAGE / "COMMIT"
"""What deployments/hatch_build.py writes into a wheel. A checkout asks git."""
_CODE = ("custody", "flows", "tasks")
"""Folders of a checkout from which the program runs: a file that git does not know changes it too."""
_SECONDS = 5.0
_read_version = cache(installed)
"""Reading it takes 4 ms, and each piece of an audit asks."""


def version() -> str:
    """Return the version of the distribution; of a checkout that is not installed, what its `pyproject.toml` says.

    Raises:
        ConfigurationError: neither is there.
    """
    try:
        return _read_version(DISTRIBUTION)
    except PackageNotFoundError:
        return _version_of_checkout()


def _version_of_checkout() -> str:
    import tomllib

    try:
        project = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")).get("project")
    except (OSError, ValueError):
        project = None
    # Another project's version is not ours.
    if isinstance(project, dict) and project.get("name") == DISTRIBUTION and isinstance(project.get("version"), str):
        return str(project["version"])
    # Imported here: the build runs this file alone.
    from custody.errors import ConfigurationError

    raise ConfigurationError(
        f"the version is not known: the distribution {DISTRIBUTION} is not installed, and no pyproject.toml of it is"
        " beside the package; install it anew (`make install` in a checkout)"
    )


def commit() -> str | None:
    """Return the commit that this program was made from, with `, modified` if its files differ; None if unknown.

    A file that is not in the commit is a difference if it is code, unless git ignores it.
    """
    if _COMMIT.exists():
        return _COMMIT.read_text(encoding="ascii").strip()
    checkout = _PACKAGE.parent
    # Not a repository further up: an environment within another project's checkout is none of its commits.
    if not (checkout / ".git").exists():
        return None
    import subprocess

    def git(*arguments: str) -> bytes:
        command = ("git", "-C", str(checkout), *arguments)
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=_SECONDS)

    try:
        head = git("rev-parse", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        added = git("status", "--porcelain", "--untracked-files=normal", "--", *_CODE)
    except (OSError, subprocess.SubprocessError):
        return None
    return head.decode().strip() + (", modified" if changed or added else "")
