"""Checks Elasticsearch: its version, what the API key may do, others' templates, its disks. Nothing is changed."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

from elasticsearch import ApiError

from custody.errors import SearchError, TransientSearchError, legible
from tasks.check.model import Line, Reporter
from tasks.search.client import DOWN, Search
from tasks.search.indices import check_templates
from tasks.settings import Settings

REQUEST_SECONDS = 3.0
"""Timeout of one request. The first one without an answer is the last."""
OLDEST = (8, 19)
NEWEST = 9
"""Versions that are tested: from `OLDEST` on, up to this one."""
TEMPLATES = "manage_index_templates"
INDEXING = ("read", "index", "create_index", "view_index_metadata")
"""Privileges on our indices without which nothing is indexed, beside `TEMPLATES` on the cluster."""
ROLLING = ("delete", "manage")
"""Privileges on our indices that the roll needs besides."""
_FORBIDDEN = 403
_FULL, _FLOODED = 90, 95
"""Percent of a disk from which on Elasticsearch moves shards away, and refuses writes, by default."""

_report = Reporter("search")


def check(settings: Settings) -> Iterator[Line]:
    """Yield what Elasticsearch says. `search.url` is set."""
    with closing(Search(settings.search, REQUEST_SECONDS)) as search:
        try:
            versions = _versions(search)
        except SearchError as error:
            remedy = "check search.url, search.api_key and search.ca_certs; archiving goes on without it"
            passing = isinstance(error, TransientSearchError)
            yield _report.failed("server", str(error).removesuffix(f": {DOWN}"), remedy, passing=passing)
            return
        yield _version(settings, versions)
        yield from _privileges(search)
        yield _templates(search)
        yield from _disks(search)


def _versions(search: Search) -> list[str]:
    """Return the versions of the nodes; none if the key may not see them.

    Raises:
        SearchError: Elasticsearch does not answer, or refuses the key.
    """
    with search.errors("its version"):
        try:
            nodes = search.client.nodes.info(filter_path="nodes.*.version").body.get("nodes", {})
        except ApiError as error:
            if error.status_code != _FORBIDDEN:
                raise
            return []
        return sorted({str(node["version"]) for node in nodes.values()})


def _version(settings: Settings, versions: Sequence[str]) -> Line:
    answer = f"{settings.search.url} answers"
    if not versions:
        return _report.ok("server", f"{answer}; its version is not known, because the key lacks monitor on the cluster")
    answer = f"{answer}, Elasticsearch {legible(', '.join(versions))}"
    numbers = [[int(part) if part.isdecimal() else 0 for part in version.split(".")[:2]] for version in versions]
    if any(tuple(number) < OLDEST or number[0] > NEWEST for number in numbers):
        remedy = f"use {OLDEST[0]}.{OLDEST[1]} or {NEWEST}"
        return _report.warning("server", f"{answer}, a version that is not tested", remedy)
    return _report.ok("server", answer)


def _privileges(search: Search) -> Iterator[Line]:
    """Yield what the API key lacks."""
    names = [search.prefix, f"{search.prefix}-*"]
    try:
        with search.errors("its privileges"):
            try:
                answer: Mapping[str, Any] = search.client.security.has_privileges(
                    cluster=[TEMPLATES], index=[{"names": names, "privileges": [*INDEXING, *ROLLING]}]
                ).body
            except ApiError as error:
                # What a server without security says.
                if error.status_code not in {400, 405}:
                    raise
                message = "security is off: whoever reaches Elasticsearch can read and change events"
                yield _report.warning("privileges", message, "turn xpack.security on, and set search.api_key")
                return
            has = {f"{name} on {index}": answer["index"][index][name] for index in names for name in INDEXING}
            has[TEMPLATES] = answer["cluster"][TEMPLATES]
            rolls = {f"{name} on {index}": answer["index"][index][name] for index in names for name in ROLLING}
    except SearchError as error:
        yield _report.warning("privileges", f"they are not known: {error}", "check the role of search.api_key")
        return
    lacks, rest = ([name for name, given in each.items() if not given] for each in (has, rolls))
    remedy = "add them to the role of search.api_key"
    if lacks:
        yield _report.failed("privileges", f"nothing can be indexed: the key lacks {', '.join(lacks)}", remedy)
    elif rest:
        yield _report.warning("privileges", f"indices cannot be rolled: the key lacks {', '.join(rest)}", remedy)
    else:
        yield _report.ok("privileges", "the key may do what indexing and the roll need")


def _templates(search: Search) -> Line:
    try:
        check_templates(search)
    except TransientSearchError as error:
        return _report.failed("template", str(error), "check Elasticsearch", passing=True)
    except SearchError as error:
        message, _, remedy = str(error).rpartition(": ")
        return _report.failed("template", message or remedy, remedy)
    return _report.ok("template", f"no template of others takes over {search.prefix}")


def _disks(search: Search) -> Iterator[Line]:
    """Yield a line for each node whose disk is too full, or one for all."""
    try:
        with search.errors("its disks"):
            rows: list[Any] = list(search.client.cat.allocation(format="json", h="node,disk.percent").body)
            used = {
                str(row["node"]): int(row["disk.percent"])
                for row in rows
                if (row.get("disk.percent") or "").isdecimal()
            }
    except SearchError as error:
        yield _report.ok("disks", f"how full they are is not known: {error}")
        return
    full = {node: percent for node, percent in used.items() if percent >= _FULL}
    for node, percent in full.items():
        message = f"the disk of {legible(node)} is {percent} % full"
        if percent >= _FLOODED:
            message = f"{message}: by default Elasticsearch refuses writes from {_FLOODED} % on"
            yield _report.failed("disks", message, "make room, or lower search.days", passing=True)
        else:
            yield _report.warning("disks", message, "make room, or lower search.days")
    if not full:
        yield _report.ok("disks", f"at most {max(used.values(), default=0)} % full")
