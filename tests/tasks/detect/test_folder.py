"""Folders of rules: which files are taken, which are refused, and which rule is used where two folders have it."""

import os
from pathlib import Path

import pytest

from custody.errors import ConfigurationError
from tasks.detect import folder, lint

TEXT = (folder.SHIPPED / "introspection.yml").read_text()
SQL = (folder.SHIPPED / "revoked-key.sql").read_text()


def problems(*folders: Path) -> list[str]:
    """Return the lines of the error of a run, and check that `lint` finds something too."""
    with pytest.raises(ConfigurationError) as caught:
        folder.load(folders)
    with pytest.raises(ConfigurationError):
        lint.rules_of(lint.read(folders))
    return str(caught.value).splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x 1\nb: *x\n", "anchors"),
        ("a: 1\na: 2\n", "twice"),
        ("1: 2\n", "no text"),
        ("a: 1\nb: [no]\n", "line 2: no is read as true or false"),
        ("a: On\n", "line 1: On is read as true or false"),
        ("a: 010\n", "line 1: 010 is read as 8"),
        ("a: 10:30\n", "line 1: 10:30 is read as 630"),
        ("a: {<<: {b: 1}}\n", "no YAML in line 1"),
        ("a: !!python/object:os.system x\n", "no YAML in line 1"),
        ("a: [\n", "no YAML in line 2"),
        ("- a\n", "maps"),
        ("", "maps"),
        ("[" * 5000, "nested too deep"),
        ("b: 1\na: 2026-02-30\n", "line 2: this is no timestamp"),
        ("a: !!int abc\n", "line 1: this is no int"),
        ("a: !!int ''\n", "line 1: this is no int"),
        ("a: !!int [b]\n", "line 1: this is no int"),
        ("a: !!float abc\n", "line 1: this is no float"),
        ("a: !!timestamp abc\n", "line 1: this is no timestamp"),
        ("a: !!binary a\n", "no YAML in line 1"),
        ('a: "\\uD83D\\uDE00"\n', "line 1: \\ud800 to"),
        ('"\\uDFFF": a\n', "line 1: \\ud800 to"),
        ("a: 1:30.5\n", "line 1: 1:30.5 is read as 90.5"),
        ("a: 1_000.5\n", "line 1: 1_000.5 is read as 1000.5"),
        ("a: .inf\n", "line 1: .inf is read as inf"),
    ],
)
def test_yaml_that_hides_a_meaning(text: str, message: str) -> None:
    """Also what would take long, or run something."""
    with pytest.raises(ConfigurationError) as caught:
        folder.documents(text)
    assert message in str(caught.value)


def test_all_problems_of_a_folder_are_told(tmp_path: Path) -> None:
    """Rules are not used by halves: one run of `lint` says all that is wrong, each with its file."""
    for name in ("first.yml", "second.yml", "Third.yml"):
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "fourth.yml").write_text("a: [")
    (tmp_path / "readme.txt").write_text("no rule")
    first, *lines = problems(tmp_path)
    assert first == "4 problems in rules:"
    names = ["Third.yml", "fourth.yml", "first.yml", "second.yml"]
    assert [line.split(": ")[0] for line in lines] == [str(tmp_path / name) for name in names]
    assert f"is also that of {tmp_path / 'second.yml'}" in lines[2]


def test_a_folder_without_a_rule_is_an_error(tmp_path: Path) -> None:
    """A run with it would find nothing, and be silent about it."""
    (tmp_path / "readme.txt").write_text("no rule")
    (tmp_path / ".hidden.yml").write_text(TEXT)
    assert problems(tmp_path) == [f"the rules' folder {tmp_path} has no file that ends in .yml, .yaml or .sql"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rule.YML", "ends in '.YML'"),
        ("rule.Sql", "ends in '.Sql'"),
        ("more/", "is a folder"),
        ("more.yml/", "is a folder"),
        ("pipe.yml|", "is no file"),
        ("zero.yml>/dev/zero", "is no file"),
        ("gone.yml>/none/at/all", "is no file"),
    ],
)
def test_what_looks_like_a_rule_and_is_none(tmp_path: Path, name: str, message: str) -> None:
    """Beside a rule that can be used too. Nothing waits for a pipe, and nothing reads a device to its end."""
    (tmp_path / "rule.yaml").write_text(TEXT)
    path = tmp_path / name.rstrip("/|").partition(">")[0]
    if name.endswith("/"):
        path.mkdir()
    elif name.endswith("|"):
        os.mkfifo(path)
    elif ">" in name:
        path.symlink_to(name.partition(">")[2])
    else:
        path.write_text(TEXT)
    _, line = problems(tmp_path)
    assert line.startswith(f"{path}: ")
    assert message in line


def test_a_large_file_and_a_large_map_end_soon(tmp_path: Path) -> None:
    """A file is read up to a bound, and keys of a map are each looked at once: 90,000 took 100 s."""
    (tmp_path / "large.yml").write_bytes(b"a" * 1_048_577)
    (tmp_path / "map.yml").write_text("".join(f"k{number}: 1\n" for number in range(20_000)))
    _, large, keys = problems(tmp_path)
    assert "larger than 1 MiB" in large
    assert "k0, k1, " in keys


@pytest.mark.parametrize(("name", "text"), [("rule.sql", SQL), ("rule.yml", TEXT)])
def test_a_mark_before_the_first_byte_is_no_part_of_a_rule(tmp_path: Path, name: str, text: str) -> None:
    """Some editors put it there, and nobody sees it."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [rule.name for rule in folder.load([tmp_path])] == ["rule"]


@pytest.mark.parametrize("name", ["failed-logins-by-key.yml", "queries-above-usual.sql"])
def test_a_later_folder_changes_a_rule(tmp_path: Path, name: str) -> None:
    """As docs/detect.md advises: a changed copy of a shipped rule is used in its place, and lint says so."""
    text = (folder.SHIPPED / name).read_text()
    (tmp_path / name).write_text(
        text.replace("level: ", "author: us\nlevel: ").replace("cool-down: 2h", "cool-down: 1h")
    )
    stem = Path(name).stem
    folders = [folder.SHIPPED, tmp_path]
    rules = folder.load(folders)
    assert len(rules) == len(folder.load([folder.SHIPPED]))
    (used,) = [rule for rule in rules if rule.name == stem]
    assert used == folder.load_file(tmp_path / name)
    files = lint.read(folders)
    assert lint.rules_of(files) == rules
    assert [(file.path, file.replaced_by) for file in files if file.replaced_by] == [
        (folder.SHIPPED / name, tmp_path / name)
    ]
    assert lint.rule_named(files, stem)[0].path == tmp_path / name


@pytest.mark.parametrize(("name", "identity"), [("other.yml", None), ("introspection.yml", "0" * 8)])
def test_only_the_same_rule_is_replaced(tmp_path: Path, name: str, identity: str | None) -> None:
    """A new rule that has the id or the name of another one by mistake does not hide it: both files are named."""
    text = (folder.SHIPPED / "introspection.yml").read_text()
    (tmp_path / name).write_text(text.replace("4d5e3f0a", identity or "4d5e3f0a", 1))
    first, *lines = problems(folder.SHIPPED, tmp_path)
    assert first == "2 problems in rules:"
    assert f"is also that of {tmp_path / name}" in lines[0]
    assert f"is also that of {folder.SHIPPED / 'introspection.yml'}" in lines[1]


def test_a_folder_that_is_named_twice(tmp_path: Path) -> None:
    """Its rules are there twice."""
    (tmp_path / "rule.yml").write_text(TEXT)
    with pytest.raises(ConfigurationError, match="a folder that is named twice"):
        folder.load([tmp_path, tmp_path])
