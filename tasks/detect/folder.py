"""Loads rules from folders: Sigma files (`.yml`) and SQL files (`.sql`). A folder with a wrong file is not used.

YAML is read without anchors, tags, repeated keys, and words that become something else, such as `no` or `010`: a rule
must mean what a reader sees.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import duckdb
import yaml

from custody.errors import ConfigurationError, counted
from tasks.detect import memory, sigma, sql_rules, views
from tasks.detect.rule import Group, Rule, RuleFailed, RuleTest, run_rule

SHIPPED: Final = Path(__file__).with_name("rules")
"""The rules that come with custody."""
_BYTES: Final = 1_048_576
_NAME: Final = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_SUFFIXES: Final = (".yml", ".yaml", ".sql")
_LISTED: Final = ".yml, .yaml or .sql"
_QUOTE: Final = "write it in quotes, or as it is meant"
_WHOLE: Final = re.compile(r"-?(?:0|[1-9][0-9]*)")
_DECIMAL: Final = re.compile(r"-?(?:0|[1-9][0-9]*)\.[0-9]+")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class _Loader(yaml.SafeLoader):
    """YAML without what hides a meaning."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ConfigurationError("anchors and aliases are not known: write it out")
        return super().compose_node(parent, index)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, AttributeError, LookupError, OverflowError):
            kind = node.tag.rpartition(":")[2]
            raise ConfigurationError(f"{_line(node)}: this is no {kind} that YAML knows: {_QUOTE}") from None

    def construct_scalar(self, node: Any) -> Any:
        value = super().construct_scalar(node)
        if _SURROGATE.search(value):
            raise ConfigurationError(f"{_line(node)}: \\ud800 to \\udfff are no characters: write the character itself")
        return value

    def construct_yaml_bool(self, node: Any) -> Any:
        if node.value.lower() not in {"true", "false"}:
            raise ConfigurationError(f"{_line(node)}: {node.value} is read as true or false: {_QUOTE}")
        return super().construct_yaml_bool(node)

    def construct_yaml_int(self, node: Any) -> Any:
        if not _WHOLE.fullmatch(node.value):
            number = super().construct_yaml_int(node)
            raise ConfigurationError(f"{_line(node)}: {node.value} is read as {number}: {_QUOTE}")
        return super().construct_yaml_int(node)

    def construct_yaml_float(self, node: Any) -> Any:
        number = super().construct_yaml_float(node)
        if not _DECIMAL.fullmatch(node.value):
            raise ConfigurationError(f"{_line(node)}: {node.value} is read as {number}: {_QUOTE}")
        return number

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys: set[str] = set()
        for key in (self.construct_object(key, deep=True) for key, _ in node.value):
            if not isinstance(key, str):
                raise ConfigurationError(f"the key {key!r} is no text: write it in quotes")
            if key in keys:
                raise ConfigurationError(f"the key {key!r} is there twice")
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def _line(node: Any) -> str:
    return f"line {node.start_mark.line + 1}"


_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_yaml_bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


def named(names: Sequence[str]) -> list[Path]:
    """Return the folders that the setting `detect.rules` names."""
    return [SHIPPED if name == "shipped" else Path(name) for name in names]


def load(folders: Sequence[Path]) -> tuple[Rule, ...]:
    """Return the rules of folders, in the order of their names.

    Raises:
        ConfigurationError: a folder cannot be read, or files are no rules; the message names each.
    """
    rules: list[tuple[Path, Rule]] = []
    problems: list[str] = []
    paths = [path for folder in folders for path in files(folder)]
    with views.connect() as connection:
        memory.create_empty(connection)
        for path in paths:
            try:
                rules.append((path, _load(path, connection)))
            except ConfigurationError as error:
                problems.append(f"{path}: {error}")
    gone = replaced(rules)
    rules = [(path, rule) for path, rule in rules if path not in gone]
    problems += (f"{path}: {problem}" for path, problem in repeated(rules))
    if problems:
        raise ConfigurationError(f"{counted(len(problems), 'problem')} in rules:\n" + "\n".join(problems))
    return tuple(sorted((rule for _, rule in rules), key=lambda rule: rule.name))


def load_file(path: Path) -> Rule:
    """Return the rule of a file.

    Raises:
        ConfigurationError: it cannot be read, or is no rule.
    """
    with views.connect() as connection:
        memory.create_empty(connection)
        return _load(path, connection)


def _load(path: Path, connection: duckdb.DuckDBPyConnection) -> Rule:
    """Return the rule of a file. The connection has all views, without a row."""
    if path.is_dir():
        raise ConfigurationError(
            "is a folder within a folder of rules: name it in `detect.rules`, or move it elsewhere"
        )
    name = path.stem
    if not name or not _NAME.issuperset(name):
        raise ConfigurationError("the file's name has other characters than a-z, 0-9 and '-'")
    if path.suffix not in _SUFFIXES:
        raise ConfigurationError(f"the file's name ends in {path.suffix!r}: rules end in {_LISTED}, in lower case")
    try:
        if not path.is_file():
            raise ConfigurationError("is no file")
        with path.open("rb") as file:
            data = file.read(_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"cannot be read: {error.strerror}") from None
    if len(data) > _BYTES:
        raise ConfigurationError("is larger than 1 MiB")
    try:
        # Some editors put a mark before the first byte.
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError("is no UTF-8") from None
    if path.suffix != ".sql":
        rule = sigma.rule_of(name, documents(text))
        _bind(rule, connection)
        return rule
    header, sql = sql_rules.split(text)
    headers = documents(header)
    if len(headers) > 1:
        raise ConfigurationError("the comment is one YAML document")
    return sql_rules.rule_of(name, headers[0], sql, connection)


def _bind(rule: Rule, connection: duckdb.DuckDBPyConnection) -> None:
    """Check that DuckDB takes what a Sigma rule became: types of fields, and regular expressions."""
    for sql in (rule.query, rule.hits):
        try:
            connection.execute(f"DESCRIBE {sql}")
        except duckdb.Error as error:
            raise ConfigurationError(f"DuckDB does not take it: {str(error).splitlines()[0]}") from None


def documents(text: str) -> list[Mapping[str, Any]]:
    """Return the documents of a YAML file.

    Raises:
        ConfigurationError: it is no YAML of maps.
    """
    try:
        found = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        raise ConfigurationError(f"no YAML{where}: {getattr(error, 'problem', None) or type(error).__name__}") from None
    except RecursionError:
        raise ConfigurationError("nested too deep") from None
    if not found or not all(isinstance(document, Mapping) for document in found):
        raise ConfigurationError("a rule file has documents that are maps")
    return found


def problems_of(rule: Rule, connection: duckdb.DuckDBPyConnection) -> Iterator[str]:
    """Yield which of a rule's own tests fail, and how."""
    for test in rule.tests:
        try:
            fired = set(_fired(connection, rule, test))
        except RuleFailed as error:
            yield str(error)
            return
        expected = set(test.fires)
        if missing := sorted(expected - fired):
            yield f"test {test.name!r}: did not fire for {_shown(missing)}"
        if wrong := sorted(fired - expected):
            yield f"test {test.name!r}: fired for {_shown(wrong)}"


def _fired(connection: duckdb.DuckDBPyConnection, rule: Rule, test: RuleTest) -> Iterator[Group]:
    """Yield the groups that fire: what came before is remembered by the same code as in a live run."""
    known, until = memory.empty(), memory.BEGINNING
    for events, counts in ((test.before, False), (test.events, True)):
        views.of_mappings(connection, events)
        for newest in views.spans(connection, memory.SPAN):
            until = max(until, newest)
            memory.create(connection, known, until=until, head_age=0)
            views.make_events(connection, views.AND_KEPT if rule.window else f"SELECT * FROM {views.NEW}")
            if counts:
                yield from (match.group for match in run_rule(connection, rule))
            failed: dict[str, str] = {}
            known = memory.remember(connection, known, [rule], [], failed, until=until)
            if failed:
                raise RuleFailed(failed[rule.name])


def _shown(groups: Sequence[tuple[tuple[str, str], ...]]) -> str:
    shown = [", ".join(f"{name} {value}" for name, value in group) or "all events" for group in groups[:3]]
    return "; ".join(shown) + (f"; and {counted(len(groups) - 3, 'more group')}" if len(groups) > 3 else "")


def files(folder: Path) -> list[Path]:
    """Return what a folder has, in the order of the names. What looks like a rule and is none fails when it is loaded.

    Raises:
        ConfigurationError: the folder cannot be read, or has no rule.
    """
    try:
        paths = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError as error:
        raise ConfigurationError(f"the rules' folder {folder} cannot be read: {error.strerror}") from None
    listed = [path for path in paths if path.suffix.lower() in _SUFFIXES or path.is_dir()]
    if not listed:
        raise ConfigurationError(f"the rules' folder {folder} has no file that ends in {_LISTED}")
    return listed


def replaced(rules: Sequence[tuple[Path, Rule]]) -> dict[Path, Path]:
    """Return the files whose rule a later folder has too, by name and id, with the file that stands in for each."""
    gone: dict[Path, Path] = {}
    last: dict[tuple[str, str], Path] = {}
    for path, rule in rules:
        key = (rule.name, rule.id)
        if key in last and last[key].parent != path.parent:
            gone[last[key]] = path
        last[key] = path
    return gone


def repeated(rules: Sequence[tuple[Path, Rule]]) -> Iterator[tuple[Path, str]]:
    """Yield which files have an id or a name that another one has: alerts would be taken for each other's."""
    for noun in ("id", "name"):
        paths: dict[str, list[Path]] = {}
        for path, rule in rules:
            paths.setdefault(getattr(rule, noun), []).append(path)
        for value, same in paths.items():
            for path in same if len(same) > 1 else ():
                others = ", ".join(str(other) for other in same if other != path) or "a folder that is named twice"
                yield path, f"the {noun} {value} is also that of {others}: give this rule another one"
