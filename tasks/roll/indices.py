"""Rolls the daily indices: tomorrow's is made ahead, old ones become read-only and small, and the oldest are deleted.

An index is deleted only if signed audits have verified every statement that has an event in it: Elasticsearch is the
copy, and a timer's word is not enough. That holds, too, for days that a backfill brought back, which stay for
`search.restored_days`, and for outlying and for rejected events: each kind shares an index, and is deleted log by log,
by when the events were sealed. What was rejected lately, by a backfill say, stays for `search.restored_days`.

Where the cluster has ILM, its policy does what can be done by age alone, and deleting stays here; where it has none,
all of it is done here.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any, Literal

from elasticsearch import ApiError

from custody.archive.forms import AUDITS
from custody.archive.reader import (
    Tip,
    at_or_behind,
    find_statement,
    find_tip,
    list_logs,
    read_audit,
    sealed_from,
)
from custody.archive.trusted import Judge, find_trusted_audits, read_trusted_archive, standing
from custody.archive.writer import append_audit, writer_name
from custody.errors import CustodyError, FormatError, KeyUnavailable, ObjectMissing, SearchError
from custody.findings import finding
from custody.format import audit, layout
from custody.format.audit import Audit, SignedAudit
from custody.format.layout import Log
from custody.format.times import format_time, parse_time
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.audit.run import clean_audit
from tasks.search.client import Search, below, refused_below
from tasks.search.documents import BROUGHT, TIER, index_day, index_name, is_restored, outlying_name
from tasks.settings import Settings

SETTLED_DAYS = 2
"""A day's index becomes read-only so many days after the day; what comes later still opens it for a moment."""
WARM_DAYS = 7
RECORDED = 100
"""Findings of a roll that stand in its audit; all of them are counted there."""
_BY_ILM = (
    "the cluster's ILM makes old indices read-only, merges them and moves them to warm nodes;"
    " the roll closes what was opened, and deletes"
)
_ALL = "the roll makes old indices read-only, merges, moves to warm nodes and deletes them"
_BY_ROLL = f"the cluster has no ILM: {_ALL}"
_NOT_ALLOWED = f"the key may not use the cluster's ILM (the privilege manage_ilm): {_ALL}"
_UNSAID = "it cannot be said whether the archive has verified it"
_LOST = "a shard of it is on no node: bring back the node that held it, or restore the index"
_HOT, _WARM = frozenset({"data_hot", "data_content"}), frozenset({"data_warm", "data"})
"""Roles of a node of the tier; plain `data` is of all tiers."""
_ON_WARM_NODES = "data_warm,data_hot,data_content"
_WARM_WHY = "Elasticsearch moves its shards to warm nodes from now on"
_UNKNOWN_ADDRESS = frozenset({400, 405, 410})
_GOOD = frozenset({"verified", "notices"})

What = Literal["create", "read-only", "merge", "warm", "delete", "policy", "rules", "move", "expire", "step", "record"]


@dataclass(frozen=True, slots=True)
class Action:
    """Something that the roll did, would do, or did not do.

    Attributes:
        what: the kind of thing.
        target: what it was done to.
        outcome: `planned` in a dry run, `refused` where a condition does not hold, `failed` where the server said no.
        why: the reason.
    """

    what: What
    target: str
    outcome: Literal["done", "planned", "refused", "failed"]
    why: str = ""


def roll_indices(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """Roll the daily indices.

    Args:
        settings: the settings; they name an Elasticsearch.
        now: the time, aware.
        dry_run: say what would be done, and change nothing.

    Raises:
        SearchError: Elasticsearch does not answer, or says no to what the rest depends on.
        CustodyError: the archive or the keys cannot be opened.
    """
    with closing(open_store(settings.archive, settings.s3)) as store, closing(Search(settings.search)) as search:
        if not dry_run:
            search.prepare()
        yield from _Roll(settings, store, search, now, dry_run=dry_run).run()


class _Roll:
    def __init__(self, settings: Settings, store: Store, search: Search, now: datetime, *, dry_run: bool) -> None:
        self._settings, self._store, self._search, self._now, self._dry = settings, store, search, now, dry_run
        self._holds = standing(store, None, settings.trust_at_hand())
        self._verified: _Verified | None = None
        self._lost: frozenset[str] = frozenset()

    def run(self) -> Iterator[Action]:
        today = self._now.astimezone(UTC).date()
        made = self._made()
        days = {name: index_day(self._search.prefix, name) for name in made}
        there = {name: day for name, day in days.items() if day is not None}
        without = self._without_ilm()
        policy = self._set_policy(there) if without is None else self._told(without)
        by_policy = without is None and policy.outcome != "failed"
        yield policy
        self._lost = self._find_lost()
        tomorrow = index_name(self._search.prefix, today + timedelta(days=1))
        if tomorrow not in there:
            yield self._act("create", tomorrow, lambda: self._create(tomorrow))
        oldest = today - timedelta(days=self._settings.search.days)
        for name, day in sorted(there.items()):
            if day < oldest:
                yield self._delete(name, f"{(self._now.date() - day).days} days old")
            elif (today - day).days > SETTLED_DAYS:
                yield from self._age(name, day, today, by_policy=by_policy)
        yield from self._end_restored(made)
        for name, end in (
            (outlying_name(self._search.prefix), self._end_outlying),
            (self._search.rejected, self._end_rejected),
        ):
            if name in self._lost:
                yield Action("delete", name, "refused", f"{_UNSAID}: {_LOST}")
            elif name in made:
                yield from end(name, oldest)

    def _told(self, why: str) -> Action:
        return Action("policy", self._search.prefix, "planned" if self._dry else "done", why)

    def _act(self, what: What, target: str, do: Any) -> Action:
        if self._dry:
            return Action(what, target, "planned")
        try:
            do()
        except SearchError as error:
            return Action(what, target, "failed", str(error))
        return Action(what, target, "done")

    # --- what there is

    def _without_ilm(self) -> str | None:
        """Return why the roll does all, and what; None where the cluster has ILM."""
        with self._search.errors("whether it has ILM"):
            try:
                self._search.client.perform_request(
                    "GET", f"/_ilm/policy/{self._search.prefix}", headers={"accept": "application/json"}
                )
            except ApiError as error:
                # 404 is ILM's own: there is no such policy yet. A server without ILM knows no such address.
                if error.status_code in _UNKNOWN_ADDRESS:
                    return _BY_ROLL
                if error.status_code == 403:
                    return _NOT_ALLOWED
                if error.status_code != 404:
                    raise
        return None

    def _find_lost(self) -> frozenset[str]:
        """Return the indices with a shard on no node: some calls wait for it for a minute, others overlook it."""
        with self._search.errors("the health of its indices"):
            found = self._search.client.cluster.health(
                index=f"{self._search.prefix}-*", level="indices", filter_path="indices.*.status"
            ).body
        return frozenset(name for name, one in found.get("indices", {}).items() if one["status"] == "red")

    def _made(self) -> dict[str, datetime]:
        """Return all indices, and when each was made."""
        with self._search.errors("its indices"):
            found = self._search.client.indices.get_settings(
                index=f"{self._search.prefix}-*", name="index.creation_date", flat_settings=True
            ).body
            return {
                name: datetime.fromtimestamp(int(one["settings"]["index.creation_date"]) / 1000, UTC)
                for name, one in found.items()
            }

    # --- what is done by age

    def _set_policy(self, there: Iterable[str]) -> Action:
        action = self._act("policy", self._search.prefix, partial(self._put_policy, there))
        if action.outcome == "failed":
            return Action("policy", action.target, "failed", f"{action.why}; {_ALL}")
        return self._told(_BY_ILM)

    def _put_policy(self, there: Iterable[str]) -> None:
        name = "index.lifecycle.name"
        phases = {
            "hot": {"actions": {}},
            "warm": {
                # Counted from when an index was made, which is up to a day before its day begins.
                "min_age": f"{SETTLED_DAYS + 2}d",
                "actions": {"readonly": {}, "forcemerge": {"max_num_segments": 1}},
            },
        }
        with self._search.errors("its ILM policy"):
            self._search.client.ilm.put_lifecycle(name=self._search.prefix, policy={"phases": phases})
            found = self._search.client.indices.get_settings(
                index=f"{self._search.prefix}-*", name=name, flat_settings=True
            ).body
            # One by one: what a pattern matches may be others' indices.
            for index in sorted(there):
                if found.get(index, {}).get("settings", {}).get(name) != self._search.prefix:
                    self._search.client.options(ignore_status=404).indices.put_settings(
                        index=index, settings={name: self._search.prefix}
                    )

    def _create(self, name: str) -> None:
        with self._search.errors(f"making {name}"):
            try:
                self._search.client.indices.create(index=name)
            except ApiError as error:
                if error.error != "resource_already_exists_exception":
                    raise

    def _age(self, name: str, day: date, today: date, *, by_policy: bool) -> Iterator[Action]:
        with self._search.errors(f"the settings of {name}"):
            answer = self._search.client.indices.get_settings(index=name, flat_settings=True, ignore_unavailable=True)
            if name not in answer:
                # Somebody deleted it meanwhile.
                return
            found = answer[name]["settings"]
        if found.get("index.blocks.write") != "true":
            # By ILM too: it does so once, and a late event opens the index again.
            yield self._act("read-only", name, lambda: self._put(name, {"index.blocks.write": True}))
        if by_policy:
            return
        if name in self._lost:
            yield Action("merge", name, "refused", _LOST)
            return
        with self._search.errors(f"the segments of {name}"):
            segments = self._search.client.indices.stats(index=name, metric="segments")["indices"][name]["primaries"]
        shards = int(found.get("index.number_of_shards", 1))
        if segments["segments"]["count"] > shards:
            yield self._act("merge", name, lambda: self._merge(name))
        setting = f"index.{TIER}"
        if (today - day).days > WARM_DAYS and found.get(setting) != _ON_WARM_NODES and self._has_warm_nodes():
            moved = self._act("warm", name, lambda: self._put(name, {setting: _ON_WARM_NODES}))
            yield Action(moved.what, name, moved.outcome, moved.why or _WARM_WHY)

    def _put(self, name: str, changed: dict[str, Any]) -> None:
        with self._search.errors(f"the settings of {name}"):
            self._search.client.indices.put_settings(index=name, settings=changed)

    def _merge(self, name: str) -> None:
        with self._search.errors(f"merging {name}"):
            long = self._search.client.options(request_timeout=3600)
            shards = long.indices.forcemerge(index=name, max_num_segments=1)["_shards"]
        if shards["failed"] or not shards["successful"]:
            raise SearchError(
                f"Elasticsearch merged {shards['successful']} of {shards['total']} shards of {name}; see its log"
            )

    def _has_warm_nodes(self) -> bool:
        """Say whether there are warm nodes, and others: where every node is of every tier there is nowhere to move."""
        with self._search.errors("the roles of its nodes"):
            nodes = self._search.client.nodes.info(filter_path="nodes.*.roles").body.get("nodes", {})
        roles = [frozenset(node["roles"]) for node in nodes.values()]
        return any(one & _WARM for one in roles) and any(one & _HOT and not one & _WARM for one in roles)

    # --- deleting

    def _delete(self, name: str, age: str) -> Action:
        try:
            why = self._unverified(name) if name not in self._lost else f"{_UNSAID}: {_LOST}"
        except CustodyError as error:
            why = f"{_UNSAID}: {error}"
        if why is not None:
            return Action("delete", name, "refused", why)
        done = self._act("delete", name, lambda: self._delete_index(name))
        return Action(done.what, name, done.outcome, done.why or f"{age}, and every event of it verified")

    def _end_restored(self, made: Mapping[str, datetime]) -> Iterator[Action]:
        kept = self._settings.search.restored_days
        for name, since in sorted(made.items()):
            if not is_restored(self._search.prefix, name) or (self._now - since).days < kept:
                continue
            # One index may have been filled by many backfills.
            days = (self._now - max(since, self._brought(name) or since)).days
            if days >= kept:
                yield self._delete(name, f"brought back {days} days ago")

    def _brought(self, name: str) -> datetime | None:
        """Return when a backfill last brought events to an index; None where it does not say so."""
        with self._search.errors(f"when events were brought to {name}"):
            found = self._search.client.indices.get_mapping(index=name, ignore_unavailable=True).body
        text = found.get(name, {}).get("mappings", {}).get("_meta", {}).get(BROUGHT)
        try:
            return parse_time(text) if isinstance(text, str) else None
        except ValueError:
            return None

    def _end_outlying(self, name: str, oldest: date) -> Iterator[Action]:
        with self._search.errors(f"what is in {name}"):
            _, found = self._search.logs_in(name)
        yield from self._end_sealed(name, {f"{one.name}/{one.partition}": one.first for one in found}, oldest, below)

    def _end_rejected(self, name: str, oldest: date) -> Iterator[Action]:
        since = self._now - timedelta(days=self._settings.search.restored_days)
        with self._search.errors(f"what is in {name}"):
            found = self._search.refused_logs()
        yield from self._end_sealed(name, found, oldest, partial(refused_below, since=since))

    def _end_sealed(
        self, name: str, found: Mapping[str, int], oldest: date, below: Callable[[Log, int], Mapping[str, Any]]
    ) -> Iterator[Action]:
        """Delete documents that were sealed before a day, log by log; what is of no log stays as evidence.

        Args:
            name: the index.
            found: logs by name, with the lowest offset that it has of each.
            oldest: the day.
            below: gives the query for a log's documents of offsets below one.
        """
        logs = {str(log): log for log in list_logs(self._store)}
        for text, first in found.items():
            log = logs.get(text)
            if log is None:
                continue
            target = f"{name}: {log}"
            try:
                tip = find_tip(self._store, log, self._holds(log))
                end = self._sealed_end(log, tip.head.size, datetime.combine(oldest, time(), UTC))
                many = self._search.count(name, below(log, end)) if first < end else 0
                if not many:
                    continue
                why = self._gap(log, first, end - 1)
            except CustodyError as error:
                many, why = 0, f"{_UNSAID}: {error}"
            if why is not None:
                yield Action("delete", target, "refused", why)
                continue
            done = self._act("delete", target, partial(self._search.delete, name, below(log, end)))
            told = f"{many:,} documents, sealed before {oldest}, and every event up to there verified"
            yield Action(done.what, target, done.outcome, done.why or told)

    def _sealed_end(self, log: Log, size: int, moment: datetime) -> int:
        """Return behind which offset a log's statements were sealed at a moment or later."""
        holds = self._holds(log)
        sealed = sealed_from(self._store, log, size, moment, holds)
        if not sealed:
            return 0
        _, found = at_or_behind(self._store, log, min(sealed, size - 1), size, holds)
        return found.statement.first_offset if sealed < size else found.statement.next_offset

    def _delete_index(self, name: str) -> None:
        with self._search.errors(f"deleting {name}"):
            self._search.client.options(ignore_status=404).indices.delete(index=name)

    def _unverified(self, name: str) -> str | None:
        """Return why the archive does not vouch for all events of an index; None if it does."""
        logs = {(log.name, log.partition): log for log in list_logs(self._store)}
        with self._search.errors(f"what is in {name}"):
            strays, found = self._search.logs_in(name)
        if strays:
            return f"{strays} of its documents do not say where in the archive they are"
        for one in found:
            log = logs.get((one.name, one.partition))
            if log is None:
                where = f"{one.name}/{one.partition}"
                return f"{one.count} of its documents are of {where}, a log that the archive does not have"
            why = self._gap(log, one.first, one.last)
            if why is not None:
                return why
        return None

    def _gap(self, log: Log, first: int, last: int) -> str | None:
        """Return why the archive does not vouch for all events from one offset to another; None if it does."""
        if self._verified is None:
            self._verified = _Verified(self._store, self._settings.own_trust())
        begin, end = (find_statement(self._store, log, offset, self._holds(log)) for offset in (first, last))
        if begin is None or end is None:
            return f"offset {first if begin is None else last} of {log} is in no statement"
        gap = self._verified.gap(log, begin[0], end[0] + 1)
        if gap is not None:
            return f"statement {gap} of {log} is verified by no audit yet; `custody audit --full` verifies all"
        return None


def record(settings: Settings, actions: Sequence[Action], now: datetime) -> int | None:
    """Sign what was deleted, what was to be and was not, what expired, and what ended a step, as an audit of its own.

    It covers nothing, and hands on what the audit before it says of heads and marks, if trusted keys signed that one
    within their spans.

    Returns:
        Its sequence; None where there is nothing to record.

    Raises:
        Fenced: another audit was written meanwhile, rightly.
        CustodyError: the archive does not take it, or no key can sign.
    """
    told = [one for one in actions if one.what in {"delete", "expire"} and one.outcome != "planned"]
    if not told:
        return None
    told = [*(one for one in actions if one.what == "step"), *told]
    counts = Counter(f"{one.what} {one.outcome}" for one in told)
    found = [
        finding("rolled", f"{one.what} {one.outcome}: {one.why}"[:1000], key=one.target[:500]).to_dict()
        for one in told[:RECORDED]
    ]
    with closing(open_store(settings.archive, settings.s3)) as store:
        trust = settings.own_trust()
        archive = read_trusted_archive(store, trust).id
        tip = find_trusted_audits(store, archive, trust)
        before = clean_audit(store, archive, trust, tip)

        def make(tip: Tip[SignedAudit]) -> Audit:
            return Audit(
                format=audit.FORMAT,
                archive=archive,
                sequence=tip.size,
                tree=tip.tree,
                passed_over=list(tip.passed_over),
                started_at=format_time(now),
                sealed_at=format_time(datetime.now(UTC)),
                writer=writer_name(),
                heads=before.heads if before else {},
                covered={},
                marks=before.marks if before else {},
                counts=dict(sorted(counts.items())),
                findings=found,
                objects=[],
                verdict="notices",
            )

        return append_audit(store, tip, make, settings.signers(now).both(), trust).size - 1


class _Verified:
    """Which statements signed audits have verified, with nothing against the archive found.

    Audits are read from the newest one back, each once, and only as far as what is asked for needs them. One that is
    not there, does not parse, stands elsewhere, does not count or was signed outside a key's span vouches for nothing.
    """

    def __init__(self, store: Store, trust: Trust) -> None:
        self._store, self._trust = store, trust
        self._judge: Judge | None = None
        self._left = 0
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def gap(self, log: Log, first: int, end: int) -> int | None:
        """Return the first statement of `[first, end)` of a log that no audit has verified; None if all are.

        Raises:
            HeadRollback: the archive is another one, or its newest audit does not count and may not be passed over.
            KeyUnavailable: an audit's signature cannot be checked now.
            StoreError: the audits cannot be read; what was read so far is not read again.
        """
        if self._judge is None:
            archive = read_trusted_archive(self._store, self._trust).id
            self._left = find_trusted_audits(self._store, archive, self._trust).head.size
            self._judge = Judge(self._store, layout.AUDIT_LOG, AUDITS, archive, self._trust)
        while (gap := _first_gap(self._spans.get(str(log), ()), first, end)) is not None and self._left:
            self._read(self._judge, self._left - 1)
            self._left -= 1
        return gap

    def _read(self, judge: Judge, sequence: int) -> None:
        try:
            signed = read_audit(self._store, sequence, judge.is_of_place)
        except (ObjectMissing, FormatError):
            return
        one = signed.statement
        if one.verdict not in _GOOD:
            return
        verdict = judge.verdict(signed, sequence)
        if verdict.clean:
            for name, covered in one.covered.items():
                self._spans.setdefault(name, []).extend((part.from_, part.to) for part in covered)
        elif any(problem.kind == "unreadable" for problem in verdict.problems):
            raise KeyUnavailable(f"audit {sequence} cannot be checked: {verdict.reason}")


def _first_gap(spans: Sequence[tuple[int, int]], first: int, end: int) -> int | None:
    """Return the first number of `[first, end)` that no span holds."""
    for begin, stop in sorted(spans):
        if begin > first:
            break
        first = max(first, stop)
    return first if first < end else None
