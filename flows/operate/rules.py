"""Shows rules and alerts: what is wrong with rule files, what rules would have found, and what an alert is about."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import RenderableType
from rich.text import Text

from custody.cli import common, render, terminal
from custody.cli.terminal import echo
from custody.errors import CustodyError, counted, escape
from tasks.detect import backtest as past
from tasks.detect import describe, folder
from tasks.detect import lint as files
from tasks.detect.lint import Problem, RuleFile
from tasks.detect.lookup import Traced, find_alert, is_alert
from tasks.detect.rule import Rule
from tasks.settings import Settings

STYLES: Mapping[str, str] = {"low": "cyan", "medium": "yellow", "high": "bold red", "critical": "bold red"}
_WIDTH = 80
_SHOWN = 10
_PLACE = re.compile(r"[A-Za-z0-9._@-]+/[0-9]+@[0-9]+")


def lint(paths: Sequence[Path] | None, *, as_json: bool = False) -> bool:
    """Print what is wrong with rule files, and return whether all can be used.

    Args:
        paths: the files, or folders of them; those of the settings if there are none.
        as_json: print a JSON line for each file.

    Raises:
        ConfigurationError: a folder cannot be read.
    """
    with render.working("running the rules' tests"):
        checked = files.lint(_paths(paths))
    if as_json:
        common.print_json(*map(_lint_facts, checked))
    else:
        render.console().print(_lint_table(checked))
        # Not broken into lines of a screen's width: editors read them.
        lines = [files.described(file.path, problem) for file in checked for problem in file.problems]
        lines += [f"{file.path}: not used, replaced by {file.replaced_by}" for file in checked if file.replaced_by]
        echo("\n".join(map(escape, (*lines, _lint_summary(checked)))))
        terminal.check_written()
    return not any(file.problems for file in checked)


def backtest(since: datetime, until: datetime, paths: Sequence[Path] | None, *, as_json: bool = False) -> None:
    """Print what rules would have found in the past.

    Args:
        since: only what was archived at this time or later.
        until: only what was archived before this time.
        paths: rule files, or folders of them; those of the settings if there are none.
        as_json: print one JSON document.

    Raises:
        CustodyError: the archive cannot be read, or a rule could not be run.
    """
    settings = Settings()
    rules = files.rules_of(files.read(_paths(paths, settings)))
    with render.working("reading the archive") as show:
        result = past.backtest(
            settings,
            rules,
            since,
            until,
            lambda now: show(f"{counted(now.events, 'event')}, archived until {now.sealed_at:%Y-%m-%d %H:%M}"),
        )
    if as_json:
        common.print_json(msgspec.to_builtins(result))
    else:
        render.console().print(_backtest_table(result))
        # Ids and evidence are copied, so no line is broken.
        echo("\n".join(map(escape, _backtest_lines(result))))
        terminal.check_written()
    if failed := [f"{each.failed}" for each in result.rules if each.failed]:
        raise CustodyError(*failed)


def explain(name: str, since: datetime, *, as_json: bool = False) -> None:
    """Print what a rule or an alert is about.

    Args:
        name: a rule's name or id, or an alert's id.
        since: how far back archived events are searched for an alert.
        as_json: print one JSON document.

    Raises:
        ConfigurationError: there is no such rule or alert.
        CustodyError: the archive cannot be read.
    """
    settings = Settings()
    if is_alert(name):
        with render.working("looking for the alert"):
            traced = find_alert(settings, name, since)
        if as_json:
            common.print_json(msgspec.to_builtins(traced))
        else:
            echo("\n".join(map(escape, _alert_lines(traced))))
        return
    file, rule = files.rule_named(files.read(_paths(None, settings)), name)
    if as_json:
        common.print_json(_rule_facts(file, rule))
    else:
        echo("\n".join(map(escape, _rule_lines(file, rule))))


def _paths(paths: Sequence[Path] | None, settings: Settings | None = None) -> Sequence[Path]:
    """Return the files and folders that were given; without any, those of the settings."""
    return paths or folder.named((settings or Settings()).detect.rules)


# --- lint


def _lint_table(checked: Sequence[RuleFile]) -> RenderableType:
    made = render.table("!rule", "!level", "!kind", "#window", "#tests", "!result")
    for file in checked:
        rule = file.rule
        known = (rule.level, rule.kind, _window(rule), f"{len(rule.tests)}") if rule else ("-",) * 4
        result = Text(counted(len(file.problems), "problem"), "bold red") if file.problems else Text("ok", "green")
        if file.replaced_by and not file.problems:
            result = Text("replaced", "dim")
        made.add_row(render.safe(file.path.stem), *map(render.safe, known), result)
    return render.Fitted(made, ("kind", "window"), names="rule")


def _lint_summary(checked: Sequence[RuleFile]) -> str:
    wrong = sum(bool(file.problems) for file in checked)
    end = f"{counted(wrong, 'has', 'have')} problems" if wrong else "all can be used"
    return f"{counted(sum(not file.replaced_by for file in checked), 'rule')}: {end}"


def _window(rule: Rule) -> str:
    return describe.span_text(rule.window) if rule.window else "none"


def _lint_facts(file: RuleFile) -> dict[str, Any]:
    return {
        "file": str(file.path),
        "rule": file.path.stem,
        "level": file.rule.level if file.rule else None,
        "kind": file.rule.kind if file.rule else None,
        "window_seconds": file.rule.window.total_seconds() if file.rule else None,
        "tests": len(file.rule.tests) if file.rule else None,
        "ok": not file.problems,
        "problems": [_problem_facts(problem) for problem in file.problems],
        "replaced_by": str(file.replaced_by) if file.replaced_by else None,
    }


def _problem_facts(problem: Problem) -> dict[str, Any]:
    return {"line": problem.line, "text": problem.text}


# --- backtest


def _backtest_table(result: past.Result) -> RenderableType:
    days = _days(result)
    numbers = ("#alerts", "#a day", "#stormed", "#groups", "#sent", "#only sent", "#only here")
    made = render.table("!rule", "!level", *numbers)
    for rule in result.rules:
        counts = (rule.recorded, rule.groups, rule.sent, len(rule.only_sent), len(rule.only_found))
        cells = [f"{rule.alerts:,}", f"{rule.alerts / days:.2f}", *(f"{count:,}" for count in counts)]
        made.add_row(render.safe(rule.rule), Text(rule.level, STYLES[rule.level]), *cells)
    return render.Fitted(made, ("groups", "stormed", "level"), names="rule")


def _backtest_lines(result: past.Result) -> Iterator[str]:
    yield from (line for rule in result.rules for line in _rule_result(rule))
    yield from result.problems[:_SHOWN]
    if (more := len(result.problems) - _SHOWN) > 0:
        yield f"and {counted(more, 'more problem')}; --json lists all"
    total, sent = sum(rule.alerts for rule in result.rules), sum(rule.sent for rule in result.rules)
    yield f"{counted(total, 'alert')} in {counted(result.events, 'event')}, {sent:,} sent then; {result.seconds:.1f} s"
    yield f"What is usual, rules know from {counted(result.warm_up, 'event')} before."


def _rule_result(rule: past.RuleResult) -> Iterator[str]:
    """Yield lines about a rule: its examples, and what the archive has more or less of."""
    if rule.examples or rule.only_sent:
        yield f"{rule.rule}:"
    if rule.noisiest and rule.noisiest[1] > 1:
        yield f"  most often: {_group(rule.noisiest[0])}, {counted(rule.noisiest[1], 'alert')}"
    for each in rule.examples:
        evidence = ", ".join(each.evidence[:2]) + (f" and {len(each.evidence) - 2} more" if each.evidence[2:] else "")
        group = "a storm" if each.storm else _group(each.group)
        yield f"  {each.first}  {each.alert_id}  {group}  metric {each.metric:,.10g}  {evidence}"
    for text, ids in (("sent, but not found here", rule.only_sent), ("found here, but not sent", rule.only_found)):
        # Where nothing was sent at all, detection did not run then, or without this rule.
        if ids and rule.sent:
            more = f" and {counted(len(ids) - _SHOWN, 'more alert')}" if len(ids) > _SHOWN else ""
            yield f"  {text}: {', '.join(ids[:_SHOWN])}{more}"


def _days(result: past.Result) -> float:
    since, until = map(datetime.fromisoformat, (result.since, result.until))
    return max((until - since).total_seconds() / 86_400, 1e-9)


def _group(group: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in group.items()) or "all events"


# --- explain


def _rule_lines(file: RuleFile, rule: Rule) -> Iterator[str]:
    yield f"{rule.name} ({rule.level}): {rule.title}"
    yield ""
    yield from _wrap(rule.description)
    yield ""
    facts = [*describe.facts(rule), ("tests", _tests(rule)), ("file", str(file.path))]
    yield from (f"  {name:<10} {text}" for name, text in facts)
    if rule.false_positives:
        yield from ("", "When nobody meant harm")
        yield from (line for reason in rule.false_positives for line in _wrap(f"  - {reason}", 4))
    yield from ("", "What to do")
    yield from _wrap(f"  {rule.advice}", 2)
    yield from ("", "SQL", *(f"  {line}" for line in rule.query.strip().splitlines()))
    if file.problems:
        yield from ("", *(files.described(file.path, problem) for problem in file.problems))


def _tests(rule: Rule) -> str:
    firing = sum(bool(test.fires) for test in rule.tests)
    return f"{firing} must fire, {len(rule.tests) - firing} must not"


def _rule_facts(file: RuleFile, rule: Rule) -> dict[str, Any]:
    tests = [
        {"name": test.name, "events": len(test.events), "fires": [dict(group) for group in test.fires]}
        for test in rule.tests
    ]
    return {
        "file": str(file.path),
        "name": rule.name,
        "id": rule.id,
        "title": rule.title,
        "level": rule.level,
        "kind": rule.kind,
        "description": rule.description,
        "group_by": rule.group_by,
        "window_seconds": rule.window.total_seconds(),
        "threshold": rule.threshold,
        "cool_down_seconds": rule.cool_down.total_seconds(),
        "false_positives": rule.false_positives,
        "advice": rule.advice,
        "tests": tests,
        "sql": rule.query,
        "problems": [_problem_facts(problem) for problem in file.problems],
    }


def _alert_lines(traced: Traced) -> Iterator[str]:
    details = traced.details
    yield f"{details.get('rule')} ({traced.level}): {details.get('title')}"
    yield ""
    over = {True: ", over", False: ", not over", None: ""}[traced.over]
    group = details.get("group")
    metric, threshold = details.get("metric"), details.get("threshold")
    rows = {
        "alert": details.get("alert_id"),
        "notice": f"{details.get('kind') or 'none: it was recorded only, in a storm'}{over}",
        "group": _group(group) if isinstance(group, Mapping) else group,
        "first": details.get("first"),
        "last": details.get("last"),
        "matches": details.get("matches"),
        "metric": f"{metric} (threshold {threshold})" if threshold is not None else metric,
        "known from": traced.source,
    }
    yield from (f"  {name:<10} {value}" for name, value in rows.items())
    given = details.get("evidence")
    # Somebody else may have written the event, and people paste the commands into a shell.
    places = [each for each in given if _PLACE.fullmatch(str(each))] if isinstance(given, list) else []
    if places:
        yield from ("", "What proves it")
        yield from (f"  custody evidence {at} -o evidence-{number}.zip" for number, at in enumerate(places, 1))
    yield from ("", *_wrap(f"`custody detect explain {details.get('rule')}` says what the rule finds and what to do."))


def _wrap(text: str, indent: int = 0) -> list[str]:
    return terminal.wrap(text, _WIDTH, indent)
