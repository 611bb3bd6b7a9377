"""How many requests a verification makes: each object is read once, and a small one with one request."""

import shutil
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from custody.archive.checkpoints import write_checkpoint
from custody.archive.reader import read_archive
from custody.errors import TransientStoreError
from custody.format.layout import Log, checkpoint_key, manifest_key
from custody.format.manifest import Batch
from custody.keys.open import open_signers
from custody.keys.secret import Secret
from custody.keys.trust import Trust, TrustedKey, open_trust
from custody.store.ahead import AHEAD
from custody.store.open import open_store
from custody.store.pieces import PIECE, read_pieces
from custody.store.protocol import Store
from custody.verify.reading import Reader
from custody.verify.run import verify
from custody.verify.scope import EVERYTHING, Scope, Span, Within
from custody.verify.work import Work
from tests.helpers.archives import KEY_ID, NOTE_NAME, NOTE_PUBLIC, SECRET, good
from tests.helpers.memory import MemoryStore
from tests.helpers.sample import Growing

TRUST = Trust(
    keys={
        KEY_ID: TrustedKey(KEY_ID, "HMAC-SHA256", material=Secret(SECRET)),
        NOTE_NAME: TrustedKey(NOTE_NAME, "Ed25519", material=NOTE_PUBLIC),
    }
)


def test_each_object_is_read_with_one_request(tmp_path: Path) -> None:
    """A full verification asks once for each manifest, each small segment and each small quarantine object."""
    builder = good(tmp_path / "archive")
    store = MemoryStore.of_folder(builder.root)
    report = verify(store, TRUST, now=builder.clock, workers=0)
    assert report.exit_code == 0
    reads = Counter(key for name, key in store.calls if name == "read")
    named = [key for key in store.objects if key.startswith(("manifests/", "events/", "quarantine/"))]
    assert {reads[key] for key in named} == {1}


@pytest.mark.parametrize("change", ["longer", "shorter", "empty"])
def test_a_length_is_checked_without_another_request(tmp_path: Path, change: str) -> None:
    """A segment or quarantine object of another length than stated is found all the same."""
    builder = good(tmp_path / "archive")
    store = MemoryStore.of_folder(builder.root)
    for kind in ("events/", "quarantine/"):
        key = next(key for key in store.objects if key.startswith(kind))
        data = store.objects[key]
        store.objects[key] = {"longer": data + b"\0", "shorter": data[:-1], "empty": b""}[change]
    report = verify(store, TRUST, now=builder.clock, workers=0)
    assert {problem.finding for problem in report.findings} == {"segment-size"}
    assert len(report.findings) == 2


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE])
def test_pieces_end_with_the_object(size: int) -> None:
    """An object is read whole, in as few requests as its size needs: one if it is smaller than a piece."""
    store = MemoryStore({"a": bytes(size)})
    assert sum(map(len, read_pieces(store, "a", 10 * PIECE))) == size
    assert len(store.calls) == size // PIECE + 1


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 8, 40, 100])
def test_a_log_of_unknown_length_is_read_to_its_end(number: int) -> None:
    """Behind the last statement no more is asked for than there are statements, and never for many."""
    log = Log("audit", 0)
    store = MemoryStore({manifest_key(log, sequence): b"%d" % sequence for sequence in range(number)})
    with Reader(store) as reader:
        read = [(sequence, data) for sequence, data in reader.manifests(log, None, 0, None, onward=True)]
    assert read == [(sequence, b"%d" % sequence) for sequence in range(number)]
    assert len(store.calls) <= number + min(number + 1, AHEAD)
    assert set(Counter(store.calls).values()) <= {1}


def test_a_store_that_fails_is_not_asked_without_end() -> None:
    """The error is the last thing that comes, however many statements follow."""
    log = Log("audit", 0)
    store = MemoryStore({manifest_key(log, sequence): b"0" for sequence in range(1000)})

    def fail(name: str, key: str) -> None:
        if key >= manifest_key(log, 20):
            raise TransientStoreError(name)

    store.before = fail
    with Reader(store) as reader:
        read = [(sequence, data) for sequence, data in reader.manifests(log, None, 0, None, onward=True)]
    assert [sequence for sequence, _ in read] == list(range(21))
    assert isinstance(read[-1][1], TransientStoreError)
    assert len(store.calls) < 20 + 2 * AHEAD


LENGTHS = (6, 1, 5, 3, 12, 4, 7, 2, 4, 8, 6, 40)


def damage(folder: Path) -> None:
    """Damage some logs of an archive, each in another way."""
    manifests, checkpoints = folder / "manifests/audit.grows", folder / "checkpoints/audit.grows"
    (manifests / "0/000000000003.json").unlink()
    (manifests / "2/000000000004.json").unlink()
    (manifests / "3/000000000000.json").unlink()
    (manifests / "4/000000000001.json").write_bytes(b"{}")
    (manifests / "5/000000000003.json").write_bytes((manifests / "6/000000000003.json").read_bytes())
    (checkpoints / "8/000000000004").write_bytes(b"no note")
    # Larger than a note may be, but not than what is read before its turn.
    (checkpoints / "6/000000000007").write_bytes(bytes(100_000))
    shutil.rmtree(manifests / "9")
    (manifests / "11/000000000500.json").write_bytes((manifests / "11/000000000020.json").read_bytes())
    # Too large to be read before its turn.
    (manifests / "1/000000000000.json").write_bytes(bytes(300_000))


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize(
    "chosen",
    [None, [Span(0, 1)], [Span(2, None)], [Span(0, 1), Span(1, None)]],
    ids=["all", "a range", "from one on", "two that meet"],
)
def test_logs_that_are_read_ahead(
    tmp_path: Path, live: bool, chosen: list[Span] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of a log before its turn changes no finding, and is not read again."""
    monkeypatch.setattr("custody.verify.reading._LOGS", 4)
    now = datetime.now(UTC)
    # The last statement of each is recent.
    begun = [now - timedelta(minutes=length) for length in LENGTHS]
    logs = [Growing(tmp_path / "site", partition, at) for partition, at in enumerate(begun)]
    keys = [f"file:{logs[0].keyring}"]
    trust, store = open_trust(keys), open_store(str(logs[0].folder))
    for growing, length in zip(logs, LENGTHS, strict=True):
        growing.append(length)
    signers, archive = open_signers(keys[0], datetime.now(UTC)), read_archive(store).id
    names = [Log("audit.grows", partition) for partition in range(len(LENGTHS))]
    for log in names:
        assert write_checkpoint(store, log, archive, trust, signers.ed25519())
    scope = Scope(dict.fromkeys(names, chosen), within=Within()) if chosen else EVERYTHING

    def found(store: Store) -> tuple[int, list[dict[str, Any]]]:
        report = verify(store, trust, now=now, live=live, workers=0, scope=scope)
        return report.exit_code, [problem.to_dict() for problem in report.findings]

    def remote() -> MemoryStore:
        made = MemoryStore.of_folder(logs[0].folder)
        made.before = fail
        return made

    def fail(name: str, key: str) -> None:
        if name == failing.get(key):
            raise TransientStoreError(name)

    failing: dict[str, str] = {}

    def read(store: MemoryStore) -> Counter[str]:
        return Counter(key for name, key in store.calls if name == "read")

    sound = remote(), remote()
    assert found(sound[0])[0] == 0
    damage(logs[0].folder)
    failing |= {manifest_key(names[7], 1): "read", checkpoint_key(names[10], 6): "read"}
    ahead = found(remote())
    monkeypatch.setattr(Reader, "logs", lambda _, logs, __: iter(logs))
    assert ahead == found(remote())
    assert ahead[0] > 1
    failing.clear()
    found(sound[1])
    assert read(sound[0]) == read(sound[1])


@pytest.mark.parametrize("small", [0, 400, 4_000_000], ids=["none is small", "some are small", "all are small"])
def test_a_sink_gets_batches_in_order(tmp_path: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is read ahead, a sink sees what it sees of a folder, and so do the counts."""
    monkeypatch.setattr("custody.verify.contents._SMALL", small)
    growing = Growing(tmp_path / "site", begun=datetime.now(UTC) - timedelta(minutes=75))
    growing.append(30)
    growing.append(10, each=40)
    growing.append(30)
    remote = MemoryStore.of_folder(growing.folder)
    trust = open_trust([f"file:{growing.keyring}"])
    seen: list[list[tuple[int, int, bytes]]] = []
    for store in (open_store(str(growing.folder)), remote):
        seen.append([])

        class Seen:
            def add(self, work: Work, batch: Batch, payload: bytes) -> None:
                seen[-1].append((work.sequence, batch.number, payload))

        report = verify(store, trust, now=datetime.now(UTC), workers=0, sink=Seen())
        assert (report.exit_code, report.logs[0].events) == (0, growing.events)
    assert seen[0] == seen[1]
    assert len(seen[0]) > 70
