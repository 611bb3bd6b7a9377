"""Looks at rule files before they are used: whether each is a rule, and whether its own tests pass."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from custody.errors import ConfigurationError
from tasks.detect import folder
from tasks.detect.rule import Rule
from tasks.detect.views import connect

_LINE: Final = re.compile(r"(no YAML in )?line ([0-9]+): ")
_TEST: Final = re.compile(r"test '(.+)': ")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a rule file.

    Attributes:
        text: what is wrong.
        line: in which line; None if it is not known.
    """

    text: str
    line: int | None = None


@dataclass(frozen=True, slots=True)
class RuleFile:
    """A rule file.

    Attributes:
        path: where it is.
        rule: the rule; None if it is none.
        problems: what is wrong with it.
        replaced_by: the file of a later folder whose rule is used in its place; None if this one is used.
    """

    path: Path
    rule: Rule | None
    problems: tuple[Problem, ...] = ()
    replaced_by: Path | None = None


def read(paths: Sequence[Path]) -> list[RuleFile]:
    """Return the rule files of folders, and single ones, in the order of their names. Their tests are not run.

    Raises:
        ConfigurationError: a folder or file cannot be read.
    """
    files = [_read(file) for file in dict.fromkeys(file for path in paths for file in _files(path))]
    gone = folder.replaced([(file.path, file.rule) for file in files if file.rule is not None])
    files = [replace(file, replaced_by=gone.get(file.path)) for file in files]
    repeated: dict[Path, list[Problem]] = {}
    used = [(file.path, file.rule) for file in files if file.rule is not None and file.replaced_by is None]
    for path, text in folder.repeated(used):
        repeated.setdefault(path, []).append(Problem(text))
    files.sort(key=lambda file: (file.path.stem, file.path))
    return [replace(file, problems=(*file.problems, *repeated.get(file.path, ()))) for file in files]


def lint(paths: Sequence[Path]) -> list[RuleFile]:
    """Return the rule files of folders, and single ones, after their tests were run.

    Raises:
        ConfigurationError: a folder or file cannot be read.
    """
    files = []
    with connect() as connection:
        for file in read(paths):
            found = folder.problems_of(file.rule, connection) if file.rule else ()
            problems = [_problem(text, file.path) for text in found]
            files.append(replace(file, problems=(*file.problems, *problems)))
    return files


def rules_of(files: Sequence[RuleFile]) -> tuple[Rule, ...]:
    """Return the rules of files that were read.

    Raises:
        ConfigurationError: something is wrong with a file; the message names each.
    """
    if problems := [described(file.path, problem) for file in files for problem in file.problems]:
        raise ConfigurationError(f"rules cannot be used; `custody detect lint` lists them: {'; '.join(problems)}")
    return tuple(file.rule for file in files if file.rule is not None and file.replaced_by is None)


def rule_named(files: Sequence[RuleFile], name: str) -> tuple[RuleFile, Rule]:
    """Return a rule and its file, by its name, its id, or as the type of an alert.

    Raises:
        ConfigurationError: there is none. The message has names that are near.
    """
    wanted = name.lower().removeprefix("custody.")
    for file in files:
        if file.rule is not None and file.replaced_by is None and wanted in {file.rule.name, file.rule.id}:
            return file, file.rule
    names = [file.rule.name for file in files if file.rule is not None]
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5) or names
    raise ConfigurationError(f"no rule has the name or id {name!r}; rules are, for instance: {', '.join(near)}")


def described(path: Path, problem: Problem) -> str:
    """Return a problem in one line, as compilers do, so that editors find the line."""
    return f"{path}:{problem.line}: {problem.text}" if problem.line else f"{path}: {problem.text}"


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return folder.files(path)
    if not path.exists():
        raise ConfigurationError(f"{path} does not exist: give rule files, or folders of them")
    return [path]


def _read(path: Path) -> RuleFile:
    try:
        return RuleFile(path, folder.load_file(path))
    except ConfigurationError as error:
        return RuleFile(path, None, (_problem(str(error), path),))


def _problem(text: str, path: Path) -> Problem:
    """Return a problem with the line that its text has, or that of the test which it is about."""
    if match := _LINE.match(text):
        return Problem(f"{'no YAML: ' if match[1] else ''}{text[match.end() :]}", int(match[2]))
    if match := _TEST.match(text):
        wanted = re.compile(rf"""\s*-?\s*name:\s*["']?{re.escape(match[1])}["']?\s*""")
        lines = path.read_text(encoding="utf-8").splitlines()
        return Problem(text, next((number for number, line in enumerate(lines, 1) if wanted.fullmatch(line)), None))
    return Problem(text)
