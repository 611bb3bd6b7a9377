"""A real Elasticsearch with security refuses one privilege after the other: the error says what, and to whom."""

import base64
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from custody.errors import CustodyError, SearchError
from tasks.roll.run import roll_all
from tasks.search.client import Search
from tasks.search.index import index_logs
from tasks.settings import AuditSettings, SearchSettings, Settings
from tests.helpers.audit import audit
from tests.helpers.sample import Growing
from tests.helpers.search import delete_indices, documents, now_event
from tests.servers.elasticsearch import ElasticsearchUnavailableError, GuardedElasticsearch
from tests.servers.proxy import FaultyProxy
from tests.servers.require import unavailable

CLUSTER = ["monitor", "manage_index_templates"]
INDICES = ["read", "write", "create_index", "view_index_metadata", "manage"]


def role(without: str) -> dict[str, object]:
    names = ["audit-*"]
    cluster = [name for name in CLUSTER if name != without]
    indices = ["maintenance", *(name for name in INDICES if name != without)]
    # `manage` is everything but documents, so others would be allowed by it.
    if without in {"create_index", "view_index_metadata"}:
        indices.remove("manage")
    return {"cluster": cluster, "indices": [{"names": names, "privileges": indices}]}


ROLES = {f"no-{name}": role(name) for name in ("manage_index_templates", *INDICES)}
ROLES |= {"full": role(""), "nobody": {"cluster": [], "indices": []}}
REFUSED = [name for name in ROLES if name != "full"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[GuardedElasticsearch]:
    """A node of this module's own, with users and roles."""
    server = GuardedElasticsearch(ROLES)
    try:
        server.start()
        yield server
    except ElasticsearchUnavailableError as error:
        unavailable(str(error))
    finally:
        server.__exit__()


@pytest.fixture
def behind(guarded: GuardedElasticsearch) -> Iterator[FaultyProxy]:
    """The way to the node, as the user that may do all that custody does."""
    with FaultyProxy(guarded.url) as proxy:
        proxy.authorization = guarded.authorization("full")
        yield proxy


def settings(growing: Growing, proxy: FaultyProxy, prefix: str, key: str | None = None) -> Settings:
    search = {"url": proxy.endpoint_url, "prefix": prefix, "replicas": 0, "api_key": key}
    return Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        audit=AuditSettings(tables=False),
        search=SearchSettings.model_validate(search),
    )


def indexed(given: Settings) -> tuple[int, int, str | None]:
    """Index, and return how many events were, how many are rejected, and what is wrong."""
    try:
        (result,) = index_logs(given)
    except SearchError as error:
        return 0, 0, str(error)
    return result.created, result.rejected, result.problem


def rolled(given: Settings) -> list[str]:
    try:
        done = roll_all(given, datetime.now(UTC), dry_run=False)
    except CustodyError as error:
        return [str(error)]
    return [f"{step.outcome} {step.why}" for step in done]


@pytest.mark.parametrize("user", REFUSED)
def test_a_privilege_is_missing(user: str, tmp_path: Path, guarded: GuardedElasticsearch, behind: FaultyProxy) -> None:
    """Nothing is booked on events, no audit is clean of what it could not see, and the user is named everywhere."""
    growing, prefix = Growing(tmp_path), guarded.unused_prefix()
    growing.append(2, now_event)
    given = settings(growing, behind, prefix)
    assert indexed(given) == (10, 0, None)
    assert audit(given).exit_code == 0
    rolled(given)
    expected = rolled(given)
    growing.append(1, now_event)
    behind.authorization = guarded.authorization(user)

    created, rejected, problem = indexed(given)
    assert rejected == 0
    named = f"unauthorized for user [{user}]"
    assert created == 5 or (named in str(problem) and "(refused to " in str(problem)), problem
    if user in {"no-write", "no-read", "no-manage_index_templates", "no-view_index_metadata", "nobody"}:
        assert problem, user

    outcome = audit(given, full=True)
    said = [str(found["message"]) for found in outcome.findings]
    assert {found["finding"] for found in outcome.findings} <= {"unreadable", "index-missing"}, outcome.findings
    if user in {"no-read", "no-view_index_metadata", "nobody"}:
        assert outcome.exit_code == 12
    # Events that are not indexed yet are a notice.
    assert outcome.exit_code in {0, 3} or any(named in message for message in said), said
    assert outcome.exit_code in {0, 3, 12}

    steps = rolled(given)
    assert steps == expected or any(named in step for step in steps), steps

    behind.authorization = guarded.authorization("full")
    assert indexed(given) == (5 - created, 0, None)
    assert len(documents(given)) == 15
    assert audit(given, full=True).exit_code == 0
    delete_indices(given)


def test_a_new_archive_is_not_indexed(tmp_path: Path, guarded: GuardedElasticsearch, behind: FaultyProxy) -> None:
    """Whoever may create no index gets no event rejected: once it is allowed, all are indexed."""
    growing, prefix = Growing(tmp_path), guarded.unused_prefix()
    growing.append(2, now_event)
    given = settings(growing, behind, prefix)
    behind.authorization = guarded.authorization("no-create_index")
    created, rejected, problem = indexed(given)
    assert (created, rejected) == (0, 0)
    assert "unauthorized for user [no-create_index]" in str(problem)
    behind.authorization = guarded.authorization("full")
    assert indexed(given) == (10, 0, None)
    delete_indices(given)


KEYS = {
    "its id": (base64.b64encode(b"VuaCfGcB:very-secret-key").decode(), "API key VuaCfGcB of search.api_key"),
    "another form": ("very-secret-key", "the API key of search.api_key"),
    "none": (None, "a client without an API key: set search.api_key"),
}


@pytest.mark.parametrize("form", KEYS)
def test_a_key_that_is_not_let_in(
    form: str, tmp_path: Path, guarded: GuardedElasticsearch, behind: FaultyProxy
) -> None:
    """A wrong API key, or none, is said by its id, and the key itself never is."""
    key, who = KEYS[form]
    behind.authorization = None
    growing = Growing(tmp_path)
    growing.append(2, now_event)
    given = settings(growing, behind, guarded.unused_prefix(), key)
    created, rejected, problem = indexed(given)
    assert (created, rejected) == (0, 0)
    assert "answers 401 security_exception" in str(problem)
    assert f"(refused to {who})" in str(problem)
    outcome = audit(given, full=True)
    assert outcome.exit_code == 12
    assert any(f"(refused to {who})" in str(found["message"]) for found in outcome.findings)
    for said in (str(problem), str(outcome.findings)):
        assert "very-secret-key" not in said
        assert key is None or key not in said


def test_a_search_of_chosen_indices_is_refused(guarded: GuardedElasticsearch, behind: FaultyProxy) -> None:
    """A refusal in the answer of several searches names its user as well."""
    behind.authorization = guarded.authorization("no-read")
    given = SearchSettings(url=behind.endpoint_url, prefix=guarded.unused_prefix())
    with closing(Search(given)) as search:
        search.chosen = [f"{given.prefix}-2026.01.01"]
        refused = r"answers 403 .*user \[no-read\].*\(refused to a client"
        with pytest.raises(SearchError, match=refused), search.errors("events"):
            search.find(index=given.prefix)
