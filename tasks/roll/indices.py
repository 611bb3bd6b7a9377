"""Rolls the daily indices: creates tomorrow's, makes old ones read-only and merges them, and deletes the oldest.

`tasks.roll.retention` decides what may be deleted. If the cluster has ILM, its policy does everything that depends only
on age, and only deletions are done here. Otherwise all of it is done here.
"""

from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any

from elasticsearch import ApiError

from custody.errors import SearchError
from custody.store.open import open_store
from custody.store.protocol import Store
from tasks.roll.record import Action, act
from tasks.roll.retention import LOST, UNKNOWN, Retention
from tasks.search.client import Search
from tasks.search.documents import TIER, index_day, index_name, out_of_range_name
from tasks.search.indices import prepare
from tasks.settings import Settings

SETTLED_DAYS = 2
"""A day's index becomes read-only this many days after the day. Late events open it again until the next roll."""
WARM_DAYS = 7
_BY_ILM = (
    "the cluster's ILM makes old indices read-only, merges them and moves them to warm nodes;"
    " the roll makes reopened indices read-only again, and deletes old ones"
)
_ALL = "the roll makes old indices read-only, merges them, moves them to warm nodes and deletes them"
_BY_ROLL = f"the cluster has no ILM: {_ALL}"
_NOT_ALLOWED = f"the API key may not use the cluster's ILM (the privilege manage_ilm): {_ALL}"
_HOT, _WARM = frozenset({"data_hot", "data_content"}), frozenset({"data_warm", "data"})
"""Node roles of the tier; plain `data` belongs to all tiers."""
_ON_WARM_NODES = "data_warm,data_hot,data_content"
_WARM_WHY = "Elasticsearch now moves its shards to warm nodes"
_UNKNOWN_ADDRESS = frozenset({400, 405, 410})


def roll_indices(settings: Settings, now: datetime, *, dry_run: bool = False) -> Iterator[Action]:
    """Roll the daily indices.

    Args:
        settings: the settings; they name an Elasticsearch.
        now: the time, timezone-aware.
        dry_run: show what would be done; change nothing.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses a request that the rest depends on.
        CustodyError: the archive or the keys cannot be opened.
    """
    with closing(open_store(settings.archive, settings.s3)) as store, closing(Search(settings.search)) as search:
        if not dry_run:
            prepare(search)
        yield from _Roll(settings, store, search, now, dry_run=dry_run).run()


class _Roll:
    """One roll of the daily indices of an Elasticsearch."""

    def __init__(self, settings: Settings, store: Store, search: Search, now: datetime, *, dry_run: bool) -> None:
        self._settings, self._store, self._search, self._now, self._dry = settings, store, search, now, dry_run
        self._retention = Retention(settings, store, search, now, dry_run=dry_run)

    def run(self) -> Iterator[Action]:
        """Do everything that is due, and yield each action."""
        retention = self._retention
        today = self._now.astimezone(UTC).date()
        made = self._made()
        days = {name: index_day(self._search.prefix, name) for name in made}
        daily = {name: day for name, day in days.items() if day is not None}
        without = self._without_ilm()
        policy = self._set_policy(daily) if without is None else self._policy_action(without)
        by_policy = without is None and policy.outcome != "failed"
        yield policy
        retention.lost = self._find_lost()
        tomorrow = index_name(self._search.prefix, today + timedelta(days=1))
        if tomorrow not in daily:
            yield act("create", tomorrow, lambda: self._create(tomorrow), dry_run=self._dry)
        oldest = today - timedelta(days=self._settings.search.days)
        for name, day in sorted(daily.items()):
            if day < oldest:
                yield retention.delete(name, f"{(self._now.date() - day).days} days old")
            elif (today - day).days > SETTLED_DAYS:
                yield from self._age(name, day, today, by_policy=by_policy)
        yield from retention.end_restored(made)
        for name, end in (
            (out_of_range_name(self._search.prefix), retention.end_out_of_range),
            (self._search.rejected, retention.end_rejected),
        ):
            if name in retention.lost:
                yield Action("delete", name, "refused", f"{UNKNOWN}: {LOST}")
            elif name in made:
                yield from end(name, oldest)

    def _policy_action(self, why: str) -> Action:
        return Action("policy", self._search.prefix, "planned" if self._dry else "done", why)

    # --- the present state

    def _without_ilm(self) -> str | None:
        """Return why the roll does everything itself; None if the cluster has ILM."""
        with self._search.errors("checking for ILM"):
            try:
                self._search.client.perform_request(
                    "GET", f"/_ilm/policy/{self._search.prefix}", headers={"accept": "application/json"}
                )
            except ApiError as error:
                # With ILM, 404 means that the policy does not exist yet. A server without ILM answers otherwise.
                if error.status_code in _UNKNOWN_ADDRESS:
                    return _BY_ROLL
                if error.status_code == 403:
                    return _NOT_ALLOWED
                if error.status_code != 404:
                    raise
        return None

    def _find_lost(self) -> frozenset[str]:
        """Return the indices with an unassigned shard. Some calls would wait a minute for it, others ignore it."""
        with self._search.errors("reading the health of its indices"):
            health = self._search.client.cluster.health(
                index=f"{self._search.prefix}-*", level="indices", filter_path="indices.*.status"
            ).body
        return frozenset(name for name, index in health.get("indices", {}).items() if index["status"] == "red")

    def _made(self) -> dict[str, datetime]:
        """Return all indices, and when each was created."""
        with self._search.errors("listing its indices"):
            created = self._search.client.indices.get_settings(
                index=f"{self._search.prefix}-*", name="index.creation_date", flat_settings=True
            ).body
            return {
                name: datetime.fromtimestamp(int(index["settings"]["index.creation_date"]) / 1000, UTC)
                for name, index in created.items()
            }

    # --- actions by age

    def _set_policy(self, daily: Iterable[str]) -> Action:
        action = act("policy", self._search.prefix, partial(self._put_policy, daily), dry_run=self._dry)
        if action.outcome == "failed":
            return Action("policy", action.target, "failed", f"{action.why}; {_ALL}")
        return self._policy_action(_BY_ILM)

    def _put_policy(self, daily: Iterable[str]) -> None:
        name = "index.lifecycle.name"
        phases = {
            "hot": {"actions": {}},
            "warm": {
                # ILM counts from an index's creation, which is up to a day before its day begins.
                "min_age": f"{SETTLED_DAYS + 2}d",
                "actions": {"readonly": {}, "forcemerge": {"max_num_segments": 1}},
            },
        }
        with self._search.errors("setting its ILM policy"):
            self._search.client.ilm.put_lifecycle(name=self._search.prefix, policy={"phases": phases})
            present = self._search.client.indices.get_settings(
                index=f"{self._search.prefix}-*", name=name, flat_settings=True
            ).body
            # One by one: a pattern could match other people's indices.
            for index in sorted(daily):
                if present.get(index, {}).get("settings", {}).get(name) != self._search.prefix:
                    self._search.client.options(ignore_status=404).indices.put_settings(
                        index=index, settings={name: self._search.prefix}
                    )

    def _create(self, name: str) -> None:
        with self._search.errors(f"creating {name}"):
            self._search.create_index(name)

    def _age(self, name: str, day: date, today: date, *, by_policy: bool) -> Iterator[Action]:
        with self._search.errors(f"reading the settings of {name}"):
            answer = self._search.client.indices.get_settings(index=name, flat_settings=True, ignore_unavailable=True)
            if name not in answer:
                # Somebody deleted it meanwhile.
                return
            present = answer[name]["settings"]
        if present.get("index.blocks.write") != "true":
            # Also with ILM, which does this only once: a late event may have opened the index again.
            yield act("read-only", name, lambda: self._put(name, {"index.blocks.write": True}), dry_run=self._dry)
        if by_policy:
            return
        if name in self._retention.lost:
            yield Action("merge", name, "refused", LOST)
            return
        with self._search.errors(f"counting the segments of {name}"):
            segments = self._search.client.indices.stats(index=name, metric="segments")["indices"][name]["primaries"]
        shards = int(present.get("index.number_of_shards", 1))
        if segments["segments"]["count"] > shards:
            yield act("merge", name, lambda: self._merge(name), dry_run=self._dry)
        setting = f"index.{TIER}"
        if (today - day).days > WARM_DAYS and present.get(setting) != _ON_WARM_NODES and self._has_warm_nodes():
            moved = act("warm", name, lambda: self._put(name, {setting: _ON_WARM_NODES}), dry_run=self._dry)
            yield Action(moved.what, name, moved.outcome, moved.why or _WARM_WHY)

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
