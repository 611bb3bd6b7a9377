"""The reference of findings: every finding is explained, in a terminal and on its page, and says so itself."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from custody.cli import explain
from custody.findings import CATALOGUE, Severity, finding
from tasks.health.model import Kind
from tests.helpers.commands import Command
from tests.helpers.sample import Sample

ROOT = Path(__file__).parents[3]
KNOWN = explain.explanations()


def test_each_finding_is_explained() -> None:
    """The catalogue of findings and that of texts have the same names, and no text is empty."""
    assert set(KNOWN) == set(CATALOGUE)
    for each in KNOWN.values():
        assert all((each.meaning, each.causes, each.false_alarms, each.steps)), each.name
        assert all(text.strip() for text in (*each.causes, *each.false_alarms, *each.steps)), each.name
        assert each.severity == CATALOGUE[each.name][0].name.lower()


def test_threats_name_explained_findings() -> None:
    """Each finding that THREATS.md names can be looked up."""
    rows = [line for line in (ROOT / "custody" / "THREATS.md").read_text().splitlines() if line.startswith("| ")]
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row.split("|")[3])}
    assert len(named) > 30
    # Two fields of a statement stand there too.
    assert named - {"lost", "skipped"} <= set(KNOWN)


def test_the_page_is_the_catalogue(custody: Command) -> None:
    """docs/findings.md is what `custody explain --markdown` prints, so neither can change alone."""
    assert (ROOT / "docs" / "findings.md").read_text() == custody("explain", "--markdown").out


@pytest.mark.parametrize("name", CATALOGUE)
def test_explanations_fit_a_terminal(custody: Command, name: str) -> None:
    """A person at 80 columns reads the meaning, the causes, false alarms and steps. Nothing is cut."""
    shown = custody("explain", name)
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    words = " ".join(re.sub(r"\n +", " ", shown.out).split())
    each = KNOWN[name]
    commands = re.findall(r"`([^`]*)`", "\n".join(each.steps))
    assert [command for command in commands if len(command) <= 70 and command not in shown.out] == []
    for text in (each.meaning, *each.causes, *each.false_alarms, *each.steps):
        assert " ".join(text.split()) in words


def test_the_list_has_a_line_for_each(custody: Command) -> None:
    """Without a name all are listed, one line each, within 80 columns."""
    lines = custody("explain").out.splitlines()
    assert [line.split()[0] for line in lines[: len(KNOWN)]] == list(KNOWN)
    assert max(map(len, lines)) <= 80
    documents = [json.loads(line) for line in custody("explain", "--json").out.splitlines()]
    assert [document["name"] for document in documents] == list(KNOWN)


def test_an_unknown_name_has_near_ones(custody: Command) -> None:
    """A typing mistake is exit code 2, and names what was meant."""
    refused = custody("explain", "segment-hsh")
    assert (refused.code, "did you mean segment-hash" in refused.err) == (2, True)
    assert "lists all" in custody("explain", "\x1b]0;x").err


@pytest.mark.parametrize("name", ["segment-hash", "custody-audit-silent", "lag-unknown", "tampered"])
def test_capitals_and_underscores_are_the_same_name(custody: Command, name: str) -> None:
    """A finding, an alert, a problem and a severity, written as in a heading or a variable, are what they are."""
    for written in (name.upper(), name.title(), name.replace("-", "_")):
        assert custody("explain", written) == custody("explain", name)


def test_markdown_with_more_is_refused(custody: Command) -> None:
    """No option is ignored: Markdown is of all findings, and of them alone."""
    for more in ("segment-hash", "custody-audit-silent", "tampered", "lag", "--json"):
        refused = custody("explain", more, "--markdown")
        assert (refused.code, refused.out, "leave" in refused.err) == (2, "", True)


def test_each_finding_names_its_explanation(custody: Command, altered: Sample) -> None:
    """JSON has the command in each finding, and the text names it once for each name of a finding."""
    assert finding("tree", "x").to_dict()["help"] == "custody explain tree"
    for damaged in (altered.folder / "events").rglob("*.gz"):
        damaged.chmod(0o600)
        damaged.write_bytes(b"altered")
    shown = custody("verify", altered.folder, "--keys", altered.keyring)
    assert shown.code == 13
    named = re.findall(r"custody explain ([a-z-]+)", shown.out)
    assert sorted(named) == sorted({*named} & set(KNOWN))
    assert "segment-size" in named


def test_each_alert_is_explained(custody: Command) -> None:
    """The command that an alert names prints its section of docs/alerts.md, at 80 columns; a near name leads to it."""
    names = re.findall(r"^#+ (custody-\S+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    assert len(names) > 10
    for name in names:
        shown = custody("explain", name)
        lines = shown.out.splitlines()
        assert (shown.code, lines[0]) == (0, f"{name} (an alert)")
        assert len(lines) > 2
        assert max(map(len, lines)) <= 80
    assert "No audit has ended for 26 hours" in custody("explain", "custody-audit-silent").out
    assert "](" not in custody("explain", "custody-audit-failed").out
    assert "did you mean custody-drain-silent" in custody("explain", "custody-drain-silnt").err
    document = json.loads(custody("explain", "custody-audit-silent", "--json").out)
    assert document["name"] == "custody-audit-silent"


def test_the_list_has_the_alerts(custody: Command) -> None:
    """What an alert is called is in the list, below the findings."""
    names = re.findall(r"^#+ (custody-\S+)$", (ROOT / "docs" / "alerts.md").read_text(), re.MULTILINE)
    below = custody("explain").out.partition("\nAlerts\n")[2].split()
    assert below[: len(names)] == names


@pytest.mark.parametrize("severity", [severity.name.lower() for severity in Severity])
def test_a_severity_lists_its_findings(custody: Command, severity: str) -> None:
    """A word of the verdict leads to the findings that have it."""
    wanted = [each.name for each in KNOWN.values() if each.severity == severity]
    documents = [json.loads(line) for line in custody("explain", severity, "--json").out.splitlines()]
    assert [document["name"] for document in documents] == wanted
    assert [line.split()[0] for line in custody("explain", severity).out.splitlines()[: len(wanted)]] == wanted


@pytest.mark.parametrize("kind", get_args(Kind))
def test_each_problem_of_status_is_explained(custody: Command, kind: str) -> None:
    """A problem that `custody status` prints leads to a command that exists, or to a page that does."""
    shown = custody("explain", kind)
    assert (shown.code, shown.err, "(a problem of `custody status`)" in shown.out) == (0, "", True)
    assert max(map(len, shown.out.splitlines())) <= 80
    said = shown.out.partition("(a problem of")[2]
    for name in re.findall(r"custody explain ([a-z-]+)", said):
        assert custody("explain", name).code == 0
    assert all((ROOT / page).exists() for page in re.findall(r"docs/[a-z-]+\.md", said))


def test_problems_are_those_of_status() -> None:
    """No problem is explained that `custody status` does not know."""
    assert set(explain._PROBLEMS) == set(get_args(Kind))
