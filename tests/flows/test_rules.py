"""`custody detect lint` and `custody detect explain`: what they say of rule files, and which mistakes they name."""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from custody.errors import ConfigurationError
from flows.operate import rules as showing
from tasks.detect import describe, folder, lint
from tasks.detect.lookup import Traced
from tests.helpers.commands import Command, custody

__all__ = ["custody"]

KEY, CHANGE, NETWORK = "failed-logins-by-key.yml", "change-without-approval.yml", "new-network-of-key.sql"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A folder with three rules that come with custody."""
    made = tmp_path / "rules"
    made.mkdir()
    for name in (KEY, CHANGE, NETWORK):
        shutil.copy(folder.SHIPPED / name, made)
    return made


def change(path: Path, old: str, new: str) -> int:
    """Replace the first occurrence of a text in a file, and return its line."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return text[: text.index(old)].count("\n") + 1


def test_the_rules_of_the_settings_are_checked(custody: Command, rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a path, the rules of `detect.rules` are checked: one line each, and the count at the end."""
    monkeypatch.setenv("CUSTODY_DETECT__RULES", str(rules))
    listed = custody("detect", "lint")
    assert (listed.code, listed.out.splitlines()[-1]) == (0, "3 rules: all can be used")
    lines = [json.loads(line) for line in custody("detect", "lint", "--json").out.splitlines()]
    assert [line["rule"] for line in lines] == sorted(Path(name).stem for name in (KEY, CHANGE, NETWORK))
    assert all(line["ok"] and line["tests"] >= 2 and not line["problems"] for line in lines)


def test_each_problem_has_its_file_and_line(custody: Command, rules: Path) -> None:
    """All files are looked at, and each mistake names its file, and its line where that is known."""
    failing = change(rules / KEY, "- name: ten failures that straddle", "- name: ten failures that straddled")
    change(rules / KEY, "{gte: 10}", "{gte: 100}")
    broken = change(rules / CHANGE, "level: high", "level: high: higher")
    unknown = change(rules / NETWORK, "FROM uses", "FROM users")
    (rules / "Bad Name.yml").write_text("title: x")
    told = custody("detect", "lint", rules)
    assert told.code == 1
    assert f"{rules / KEY}:{failing}: test 'ten failures that straddled" in told.out
    assert "did not fire for api_key_id key-1" in told.out
    assert f"{rules / CHANGE}:{broken}: no YAML: " in told.out
    assert f"{rules / NETWORK}:{unknown}: " in told.out
    assert "reads users, which is no view" in told.out
    assert f"{rules / 'Bad Name.yml'}: the file's name" in told.out
    assert told.out.splitlines()[-1] == "4 rules: 4 have problems"
    (line, *_) = (json.loads(line) for line in custody("detect", "lint", rules / KEY, "--json").out.splitlines())
    assert (line["ok"], line["problems"][0]["line"]) == (False, failing)


def test_two_rules_are_never_taken_for_each_other(custody: Command, rules: Path) -> None:
    """A copy with the same id is named with the file whose id it has."""
    shutil.copy(rules / KEY, rules / "copy.yml")
    told = custody("detect", "lint", rules)
    assert (told.code, told.out.count("is also that of")) == (1, 2)
    identity = "4d5e3f0a-4f6f-4f0e-9a57-0a3f4c1f9a01"
    assert f"{rules / 'copy.yml'}: the id {identity} is also that of {rules / KEY}" in told.out
    with pytest.raises(ConfigurationError, match="custody detect lint"):
        lint.rules_of(lint.read([rules]))


def test_a_rule_that_a_later_folder_changes_is_shown(custody: Command, rules: Path) -> None:
    """The copy counts, and lint names the file that is not used, in words and as JSON."""
    told = custody("detect", "lint", folder.SHIPPED / KEY, rules)
    assert (told.code, told.out.splitlines()[-1]) == (0, "3 rules: all can be used")
    assert f"{folder.SHIPPED / KEY}: not used, replaced by {rules / KEY}" in told.out
    told = custody("detect", "lint", folder.SHIPPED / KEY, rules, "--json")
    by_file = {line["file"]: line["replaced_by"] for line in map(json.loads, told.out.splitlines())}
    assert by_file[str(folder.SHIPPED / KEY)] == str(rules / KEY)
    assert by_file[str(rules / KEY)] is None


def test_a_path_that_is_not_there(custody: Command, tmp_path: Path) -> None:
    """A mistyped path is a wrong argument, and not a folder without problems."""
    told = custody("detect", "lint", tmp_path / "none")
    assert (told.code, "does not exist" in told.err) == (2, True)


def test_a_rule_is_explained_by_name_and_by_id(custody: Command, rules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it finds, its numbers, harmless reasons, what to do, its SQL, its tests, and where its file is."""
    monkeypatch.setenv("CUSTODY_DETECT__RULES", str(rules))
    rule = folder.load_file(rules / KEY)
    told = custody("detect", "explain", rule.name)
    assert told.code == 0
    for text in (rule.title, rule.description, rule.false_positives[0], rule.id, "5 minutes", str(rules / KEY)):
        assert text in told.out
    assert "1 must fire, 2 must not" in told.out
    assert rule.query in told.out
    for name in (rule.id, f"custody.{rule.name}", rule.name.upper()):
        assert custody("detect", "explain", name).out == told.out
    document = json.loads(custody("detect", "explain", rule.name, "--json").out)
    assert (document["threshold"], document["window_seconds"], document["sql"]) == (10, 300, rule.query)
    unknown = custody("detect", "explain", "failed-login-by-key")
    assert (unknown.code, "failed-logins-by-key" in unknown.err) == (2, True)


def test_commands_that_prove_an_alert_are_no_others() -> None:
    """An archived event may be anybody's. Of its evidence only what names an event becomes a command."""
    hostile = ["audit.events/0@12", "x/0@1; rm -rf ~", "$(id)/0@1", 7, None, "a/0@1\nb"]
    lines = [*showing._alert_lines(Traced({"evidence": hostile, "group": 3}, "low", "an event", None))]
    assert [line for line in lines if "custody evidence" in line] == [
        "  custody evidence audit.events/0@12 -o evidence-1.zip"
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 days"), (90, "90 seconds"), (300, "5 minutes"), (5400, "90 minutes"), (604800, "7 days")],
)
def test_spans_are_in_their_largest_whole_unit(seconds: int, text: str) -> None:
    """A span is a number and one unit."""
    assert describe.span_text(timedelta(seconds=seconds)) == text
