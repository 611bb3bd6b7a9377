"""Where logs end by the newest signed audit: nothing that anybody can put steers a search, even with public keys."""

from pathlib import Path

import msgspec
import pytest

from custody.archive.audited import audited_sizes
from custody.archive.guesses import claimed_sizes
from custody.archive.reader import read_manifest
from custody.archive.show import show
from custody.format import manifest
from custody.format.envelope import Tree, seal
from custody.format.manifest import Manifest
from custody.keys.key import HmacKey
from custody.keys.secret import Secret
from custody.keys.trust import Trust
from custody.tlog import merkle
from tests.helpers import querying
from tests.helpers.leafy import Leafy
from tests.helpers.misled import mislead
from tests.helpers.reading import anything

STATEMENTS, EACH, PLANTED = 6, 4, 499


@pytest.fixture(scope="module")
def misled(tmp_path_factory: pytest.TempPathFactory) -> Leafy:
    """Return an audited archive into which somebody without keys has put an audit, and a statement it leads to."""
    log = Leafy(tmp_path_factory.mktemp("misled"))
    for sequence in range(STATEMENTS):
        log.append(list(range(sequence * EACH, (sequence + 1) * EACH)))
    querying.audit(log.folder, log.keyring, pieces=3)
    assert audited_sizes(log.store, log.id, log.public) == {str(log.log): STATEMENTS}
    mislead(log.store, log.log, [PLANTED], _forged(log))
    assert claimed_sizes(log.store)[str(log.log)] == PLANTED + 1
    return log


def _forged(of: Leafy) -> bytes:
    """Return a statement that repeats what statement 1 accounts for, behind a consistent tree of invented slots."""
    tip = of.writer().tip
    compact_range = tip.compact_range
    for size in range(tip.size, PLANTED):
        compact_range = merkle.append(size, compact_range, merkle.leaf_hash(b"%d" % size))
    tree = Tree(PLANTED, merkle.range_root(compact_range).hex(), [node.hex() for node in compact_range])
    statement = read_manifest(of.store, of.log, 1, anything).statement
    line = manifest.encode(msgspec.structs.replace(statement, sequence=PLANTED, tree=tree))
    return seal(line, manifest.FORMAT, [HmacKey(of.signers.hmac().key_id, Secret(bytes(32)))])


def test_the_planted_statement_is_accepted_where_no_mac_can_be_checked(misled: Leafy) -> None:
    """Show it by its sequence: it is what a search would return."""
    shown: Manifest | None = show(misled.store, f"{misled.log}/{PLANTED}", misled.public).manifest
    assert shown is not None
    assert shown.statement.first_offset == EACH


@pytest.mark.parametrize("keys", ["public", "own", "none"])
def test_an_unsigned_audit_steers_no_answer(misled: Leafy, keys: str) -> None:
    """With public keys, with all, and with none, a log's end, its records and its objects are the signed ones."""
    trust = {"public": misled.public, "own": misled.own, "none": Trust()}[keys]
    assert show(misled.store, str(misled.log), trust).position["sequence"] == STATEMENTS - 1
    record = show(misled.store, f"{misled.log}@{EACH + 2}", trust).position
    assert record["sequence"] == 1
    assert show(misled.store, record["object"], trust).position["sequence"] == 1


def test_the_signed_audit_before_an_unsigned_one_counts(misled: Leafy) -> None:
    """Requests stay few with public keys, and nothing is taken from the audit of another archive with the same keys."""
    assert audited_sizes(misled.store, misled.id, misled.public) == {str(misled.log): STATEMENTS}
    assert audited_sizes(misled.store, "0" * 32, misled.public) == {}
    assert audited_sizes(misled.store, misled.id, Trust()) == {}


def test_an_archive_without_audits(tmp_path: Path) -> None:
    """There is nothing to begin at."""
    log = Leafy(tmp_path)
    assert audited_sizes(log.store, log.id, log.public) == {}


def test_only_these_use_what_an_unsigned_audit_says() -> None:
    """They list checkpoints, each of which is checked, or accept no entry without a good signature (`Judge.holds`)."""
    root = Path(__file__).parents[3]
    users = {
        str(path.relative_to(root))
        for folder in ("custody", "tasks", "flows")
        for path in (root / folder).rglob("*.py")
        if "claimed_sizes" in path.read_text() and path.name != "guesses.py"
    }
    assert users == {
        "custody/cli/evidence.py",
        "custody/emit/sealing.py",
        "tasks/roll/expire.py",
    }
