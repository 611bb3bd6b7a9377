"""What this program is: its distribution, version and commit."""

from importlib.metadata import version as installed
from pathlib import Path

DISTRIBUTION = "custody-archive"
"""The distribution that has this package. The one called `custody` on PyPI is somebody else's."""
_PACKAGE = Path(__file__).parent
_COMMIT = _PACKAGE / "COMMIT"
"""What deployments/hatch_build.py writes into a wheel. A checkout asks git."""
_SECONDS = 5.0


def version() -> str:
    """Return the version of the distribution."""
    return installed(DISTRIBUTION)


def commit() -> str | None:
    """Return the commit that this program was made from, with `, modified` if its files differ; None if unknown."""
    if _COMMIT.exists():
        return _COMMIT.read_text(encoding="ascii").strip()
    checkout = _PACKAGE.parent
    # Not a repository further up: an environment within another project's checkout is none of its commits.
    if not (checkout / ".git").exists():
        return None
    import subprocess

    git = ("git", "-C", str(checkout))
    try:
        head = subprocess.check_output([*git, "rev-parse", "HEAD"], stderr=subprocess.DEVNULL, timeout=_SECONDS)
        changed = subprocess.check_output(
            [*git, "status", "--porcelain", "--untracked-files=no"], stderr=subprocess.DEVNULL, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.decode().strip() + (", modified" if changed else "")
