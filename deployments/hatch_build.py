"""Writes the commit into what is built, so that `custody --version` knows it where there is no git."""

import runpy
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAME = "custody/COMMIT"


class CommitHook(BuildHookInterface[Any]):
    """Adds `custody/COMMIT` to a wheel and to a source distribution. The same commit gives the same bytes."""

    _folder: tempfile.TemporaryDirectory[str] | None = None
    """Where the file is. It is removed when the process ends, so also if the build fails."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the file. An editable install gets none, since its code changes.

        Args:
            version: the kind of build, as `standard` or `editable`.
            build_data: what hatchling builds.
        """
        root = Path(self.root)
        if version == "editable":
            return
        commit = runpy.run_path(str(root / "custody" / "version.py"))["commit"]()
        if commit is None:
            return
        self._folder = tempfile.TemporaryDirectory(prefix="custody-build-")
        file = Path(self._folder.name) / "COMMIT"
        file.write_text(commit, encoding="ascii")
        build_data["force_include"][str(file)] = NAME

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what `initialize` made.

        Args:
            version: the kind of build.
            build_data: what hatchling built.
            artifact_path: what it made.
        """
        del version, build_data, artifact_path
        if self._folder:
            self._folder.cleanup()
