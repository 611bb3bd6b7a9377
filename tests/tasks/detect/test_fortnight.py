"""A fortnight of an ordinary shop, with an attack for each shipped rule: each is told once, and nothing else is.

The attacks were written from the rules' words (`tests.helpers.planted`).
"""

from collections.abc import Mapping
from datetime import datetime

import pytest

from tasks.detect import folder
from tasks.detect.rule import Group
from tests.helpers import fortnight, planted
from tests.helpers.detecting import Live
from tests.helpers.fortnight import DAY, HOUR, Shop


@pytest.mark.timeout(600)
def test_each_attack_is_told_once_and_nothing_else_is_however_steps_are_cut() -> None:
    # One test, half a minute on a quiet machine, because the two weeks to learn from are needed by all of it, and each
    # worker of xdist would run them again.
    shop = Shop()
    attacks = planted.attacks(shop)
    archived = fortnight.sent(shop, attacks)
    rules = folder.load([folder.SHIPPED])
    assert sorted(each.rule for each in attacks) == [rule.name for rule in rules]

    begin = shop.learnt * DAY
    early = [each for each in archived if each.archived < begin]
    rest = archived[len(early) :]
    learnt = Live().run(rules, early, [*fortnight.cuts(begin, (), quiet=11 * HOUR), begin])
    # A key of two days is rotated, and its owner goes home: the rule says that it cannot tell.
    assert [rule for rule, _ in learnt.told] == ["rotated-key-from-elsewhere"]

    end = shop.days * DAY + HOUR
    live = learnt.copy().run(rules, rest, [*fortnight.cuts(end, (), quiet=11 * HOUR), end])
    known = [(rule, group) for rule, group, _ in shop.known_false_positives]
    assert live.told == sorted(fortnight.groups_of(attacks) + known)

    # These cuts go through the attacks, while some of their events are still on their way.
    other = learnt.copy().run(rules, rest, [*fortnight.cuts(end, attacks, quiet=9 * HOUR, fine=0, few=1), end])
    assert sorted(_opened(other).values()) == sorted(_opened(live).values())
    # Where a cut is before an older event of the same minute, another event completes the match that opens the alert.
    named = {**_opened(live), **_opened(other)}
    differing = {named[name][0] for name in _opened(live).keys() ^ _opened(other).keys()}
    assert differing <= {"denials-above-usual", "queries-above-usual"}


def _opened(live: Live) -> Mapping[str, tuple[str, Group, datetime]]:
    """Return rule, group and first event of each alert that was told, by its id."""
    return {
        each.alert.id: (each.alert.rule, each.alert.group, each.alert.first)
        for each in live.notices
        if each.kind == "opened"
    }
