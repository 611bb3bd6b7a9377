"""Rolls the daily indices: creates tomorrow's, makes old ones read-only and merges them, and deletes the oldest.

An index is deleted only if signed audits have verified every statement that has an event in it: age alone is not
enough. The same rule holds for

- days that a backfill restored, which stay for `search.restored_days`;
- out-of-range events and rejected events. Each kind shares an index, and its documents are deleted log by log, by the
  time when the events were sealed. Recently rejected events, for example from a backfill, stay for
  `search.restored_days`.

The cluster's ILM is not used. It makes an index read-only once, while late events open indices again, and its API needs
a privilege of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, date, datetime, time, timedelta
from functools import partial
from typing import Any

from custody.archive.reader import list_logs
from custody.archive.search import find_statement, sealed_from
from custody.archive.trusted import standing
from custody.errors import CustodyError, SearchError, TransientSearchError, counted
from custody.format.layout import Log
from custody.format.times import moment_of, parse_time
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.audit.signed import Coverage
from tasks.roll.record import Action, What, act
from tasks.search.client import Search
from tasks.search.documents import RESTORED_AT, TIER, index_day, index_name, is_restored, out_of_range_name
from tasks.search.indices import differing_indices, prepare, unassigned_indices
from tasks.search.queries import below, count_documents, delete_documents, logs_in, refused_below, refused_logs
from tasks.settings import Settings

LOST = "it has an unassigned shard: start the node that held the shard, or restore the index"
CLOCK = "the host's clock is more than a day ahead of the archive's, or that has none: set it, or use --confirm-clock"
UNKNOWN = "it is not known whether audits have verified it"
SETTLED_DAYS = 2
"""A day's index becomes read-only this many days after the day. Late events open it again until the next roll."""
WARM_DAYS = 7
_HOT, _WARM = frozenset({"data_hot", "data_content"}), frozenset({"data_warm", "data"})
"""Node roles of the tier; plain `data` belongs to all tiers."""
_ON_WARM_NODES = "data_warm,data_hot,data_content"
_WARM_WHY = "Elasticsearch now moves its shards to warm nodes"


def roll_indices(
    settings: Settings, now: datetime, *, dry_run: bool = False, keep: bool = False, earliest: datetime | None = None
) -> Iterator[Action]:
    """Roll the daily indices.

    Args:
        settings: the settings. If they name no Elasticsearch, there is nothing to do.
        now: the host's time, timezone-aware.
        dry_run: show what would be done; change nothing.
        keep: delete nothing, because the host's clock is far ahead of all others.
        earliest: the earliest of all clocks, which decides what is old enough to be deleted; by default `now`.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses a request that the rest depends on.
        CustodyError: the archive or the keys cannot be opened.
    """
    if not settings.search.url:
        return
    with closing(open_store(settings.archive, settings.s3)) as store, closing(Search(settings.search)) as search:
        search.reach()
        if not dry_run:
            prepare(search)
        yield from IndexRoll(settings, store, search, now, dry_run=dry_run, keep=keep, earliest=earliest or now).run()


class IndexRoll:
    """One roll of the daily indices of an Elasticsearch."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        search: Search,
        now: datetime,
        *,
        dry_run: bool,
        keep: bool,
        earliest: datetime,
    ) -> None:
        self._settings, self._store, self._search, self._now, self._dry = settings, store, search, now, dry_run
        self._keep, self._earliest = keep, earliest
        self._holds = standing(store, None, settings.trust_at_hand())
        self._coverage: Coverage | None = None
        self._lost: frozenset[str] = frozenset()
        """Indices with an unassigned shard."""
        self._odd: dict[str, str] = {}
        """Indices that are not as the template makes them, and how. What searches say of them proves nothing."""

    def run(self) -> Iterator[Action]:
        """Do everything that is due, and yield each action."""
        today = self._now.astimezone(UTC).date()
        made = self._made()
        days = {name: index_day(self._search.prefix, name) for name in made}
        daily = {name: day for name, day in days.items() if day is not None}
        # Some calls would wait a minute for their shards, others ignore it.
        self._lost = unassigned_indices(self._search, f"{self._search.prefix}-*")
        self._odd = self._find_odd()
        tomorrow = index_name(self._search.prefix, today + timedelta(days=1))
        if tomorrow not in daily:
            yield act("create", tomorrow, lambda: self._create(tomorrow), dry_run=self._dry)
        oldest = self._earliest.astimezone(UTC).date() - timedelta(days=self._settings.search.days)
        for name, day in sorted(daily.items()):
            if day < oldest:
                yield self._delete(name, f"{(self._earliest.date() - day).days} days old")
            elif (today - day).days > SETTLED_DAYS:
                yield from self._go_on(name, "merge", partial(self._age, name, day, today))
        yield from self._end_restored(made)
        for name, end in (
            (out_of_range_name(self._search.prefix), self._end_out_of_range),
            (self._search.rejected, self._end_rejected),
        ):
            if name in self._lost:
                yield Action("delete", name, "refused", f"{UNKNOWN}: {LOST}")
            elif name in self._odd:
                yield Action("delete", name, "failed", f"{UNKNOWN}: {self._odd[name]}")
            elif name in made:
                yield from self._go_on(name, "delete", partial(end, name, oldest))

    @staticmethod
    def _go_on(name: str, what: What, actions: Callable[[], Iterator[Action]]) -> Iterator[Action]:
        """Yield the actions on an index. If Elasticsearch refuses, that is one of them: other indices are still due.

        Raises:
            TransientSearchError: Elasticsearch does not answer.
        """
        try:
            yield from actions()
        except TransientSearchError:
            raise
        except SearchError as error:
            yield Action(what, name, "failed", str(error))

    # --- the present state

    def _find_odd(self) -> dict[str, str]:
        """Return the indices of events that are not as the template makes them, and how."""
        differing = differing_indices(self._search, f"{self._search.prefix}-*")
        own = {self._search.cursors, self._search.rejected}
        return {
            name: f"it is not as the template makes it ({difference}): set that right, or delete the index"
            for name, (difference, _) in differing.items()
            if difference and name not in own
        }

    def _made(self) -> dict[str, datetime]:
        """Return all indices, and when each was created."""
        with self._search.errors("listing its indices"):
            created = self._search.client.indices.get_settings(
                index=f"{self._search.prefix}-*",
                name="index.creation_date",
                flat_settings=True,
                # Also those that somebody closed or hid.
                expand_wildcards="all",
            ).body
            return {
                name: moment_of(int(index["settings"]["index.creation_date"]) / 1000) for name, index in created.items()
            }

    # --- actions by age

    def _create(self, name: str) -> None:
        with self._search.errors(f"creating {name}"):
            self._search.create_index(name)

    def _age(self, name: str, day: date, today: date) -> Iterator[Action]:
        if name in self._odd:
            yield Action("merge", name, "failed", self._odd[name])
            return
        with self._search.errors(f"reading the settings of {name}"):
            answer = self._search.client.indices.get_settings(index=name, flat_settings=True, ignore_unavailable=True)
            if name not in answer:
                # Somebody deleted it meanwhile.
                return
            present = answer[name]["settings"]
        if present.get("index.blocks.write") != "true":
            yield act("read-only", name, lambda: self._put(name, {"index.blocks.write": True}), dry_run=self._dry)
        if name in self._lost:
            yield Action("merge", name, "refused", LOST)
            return
        with self._search.errors(f"searching {name}"):
            self._search.find(index=name, size=0)
        with self._search.errors(f"counting the segments of {name}"):
            segments = self._search.client.indices.stats(index=name, metric="segments")["indices"][name]["primaries"]
        shards = int(present.get("index.number_of_shards", 1))
        if segments["segments"]["count"] > shards:
            yield act("merge", name, lambda: self._merge(name), dry_run=self._dry)
        setting = f"index.{TIER}"
        if (today - day).days > WARM_DAYS and present.get(setting) != _ON_WARM_NODES and self._has_warm_nodes():
            move = partial(self._put, name, {setting: _ON_WARM_NODES})
            yield act("warm", name, move, _WARM_WHY, dry_run=self._dry)

    def _put(self, name: str, changed: dict[str, Any]) -> None:
        with self._search.errors(f"changing the settings of {name}"):
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
        """Return whether the cluster has both warm nodes and hot nodes that are not warm."""
        with self._search.errors("reading the roles of its nodes"):
            nodes = self._search.client.nodes.info(filter_path="nodes.*.roles").body.get("nodes", {})
        roles = [frozenset(node["roles"]) for node in nodes.values()]
        return any(node & _WARM for node in roles) and any(node & _HOT and not node & _WARM for node in roles)

    # --- deletions

    def _delete(self, name: str, age: str) -> Action:
        """Delete an index if signed audits have verified all its events."""
        if self._keep:
            return Action("delete", name, "failed", CLOCK)
        if name in self._odd:
            return Action("delete", name, "failed", f"{UNKNOWN}: {self._odd[name]}")
        try:
            why = self._unverified(name) if name not in self._lost else f"{UNKNOWN}: {LOST}"
        except CustodyError as error:
            return Action("delete", name, "failed", f"{UNKNOWN}: {error}")
        if why is not None:
            return Action("delete", name, "refused", why)
        verified = f"{age}, and all its events verified"
        return act("delete", name, lambda: self._delete_index(name), verified, dry_run=self._dry)

    def _end_restored(self, made: Mapping[str, datetime]) -> Iterator[Action]:
        """Delete days that a backfill restored long enough ago.

        Args:
            made: all indices, and when each was created.
        """
        kept = self._settings.search.restored_days
        for name, since in sorted(made.items()):
            if not is_restored(self._search.prefix, name) or (self._earliest - since).days < kept:
                continue
            yield from self._go_on(name, "delete", partial(self._end_one_restored, name, since))

    def _end_one_restored(self, name: str, since: datetime) -> Iterator[Action]:
        # One index may have been filled by many backfills.
        days = (self._earliest - max(since, self._restored_at(name) or since)).days
        if days >= self._settings.search.restored_days:
            yield self._delete(name, f"restored {days} days ago")

    def _restored_at(self, name: str) -> datetime | None:
        """Return when a backfill last restored events to an index; None if the index has no such mark."""
        with self._search.errors(f"reading when events were restored to {name}"):
            mapping = self._search.client.indices.get_mapping(index=name, ignore_unavailable=True).body
        text = mapping.get(name, {}).get("mappings", {}).get("_meta", {}).get(RESTORED_AT)
        try:
            return parse_time(text) if isinstance(text, str) else None
        except ValueError:
            return None

    def _end_out_of_range(self, name: str, oldest: date) -> Iterator[Action]:
        """Delete out-of-range events that were sealed before a day."""
        with self._search.errors(f"listing the logs in {name}"):
            _, logs = logs_in(self._search, name)
        lowest = {f"{log.name}/{log.partition}": log.first for log in logs}
        yield from self._end_sealed(name, lowest, oldest, below)

    def _end_rejected(self, name: str, oldest: date) -> Iterator[Action]:
        """Delete the documents of rejected events that were sealed before a day."""
        since = self._earliest - timedelta(days=self._settings.search.restored_days)
        with self._search.errors(f"listing the logs in {name}"):
            lowest = refused_logs(self._search)
        yield from self._end_sealed(name, lowest, oldest, partial(refused_below, since=since))

    def _end_sealed(
        self, name: str, lowest: Mapping[str, int], oldest: date, below: Callable[[Log, int], Mapping[str, Any]]
    ) -> Iterator[Action]:
        """Delete documents of events sealed before a day, log by log. Documents of no log stay, as evidence.

        Args:
            name: the index.
            lowest: the lowest offset in the index of each log, by the log's name.
            oldest: the day.
            below: returns the query for a log's documents below an offset.
        """
        logs = {str(log): log for log in list_logs(self._store)}
        for text, first in lowest.items():
            log = logs.get(text)
            if log is None:
                continue
            target = f"{name}: {log}"
            if self._keep:
                yield Action("delete", target, "failed", CLOCK)
                continue
            try:
                end = sealed_from(self._store, log, first, datetime.combine(oldest, time(), UTC), self._holds(log))
                many = count_documents(self._search, name, below(log, end)) if first < end else 0
                if not many:
                    continue
                why = self._gap(log, first, end - 1)
            except CustodyError as error:
                yield Action("delete", target, "failed", f"{UNKNOWN}: {error}")
                continue
            if why is not None:
                yield Action("delete", target, "refused", why)
                continue
            delete = partial(delete_documents, self._search, name, below(log, end))
            verified = f"{counted(many, 'document')}, sealed before {oldest}; all events up to there are verified"
            yield act("delete", target, delete, verified, dry_run=self._dry)

    def _delete_index(self, name: str) -> None:
        with self._search.errors(f"deleting {name}"):
            self._search.client.options(ignore_status=404).indices.delete(index=name)

    def _unverified(self, name: str) -> str | None:
        """Return why the events of an index are not all verified; None if they are."""
        logs = {(log.name, log.partition): log for log in list_logs(self._store)}
        with self._search.errors(f"listing the logs in {name}"):
            strays, by_log = logs_in(self._search, name)
        if strays:
            many = counted(strays, "of its documents does", "of its documents do")
            return f"{many} not say where in the archive to look"
        for documents in by_log:
            log = logs.get((documents.name, documents.partition))
            if log is None:
                where = f"{documents.name}/{documents.partition}"
                many = counted(documents.count, "of its documents is", "of its documents are")
                return f"{many} of {where}, a log that the archive does not have"
            why = self._gap(log, documents.first, documents.last)
            if why is not None:
                return why
        return None

    def _gap(self, log: Log, first: int, last: int) -> str | None:
        """Return why the events from one offset to another are not all verified; None if they are."""
        if self._coverage is None:
            self._coverage = Coverage(self._store, self._settings.own_trust())
        begin, end = (find_statement(self._store, log, offset, self._holds(log)) for offset in (first, last))
        if begin is None or end is None:
            return f"offset {first if begin is None else last} of {log} is in no statement"
        gap = self._coverage.gap(log, begin[0], end[0] + 1)
        if gap is not None:
            return f"statement {gap} of {log} is not verified by an audit yet; `custody audit --full` verifies all"
        return None
