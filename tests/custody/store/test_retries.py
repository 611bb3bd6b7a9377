"""Calls that are made again are counted, by the server and the type of the error before, with real refusals."""

from collections import Counter
from collections.abc import Iterator

import pytest

from custody.errors import TransientStoreError
from custody.store import retries
from custody.store.open import open_store
from custody.store.protocol import S3Options, Store
from tests.servers.proxy import Fault, FaultyProxy
from tests.servers.s3 import MotoServer

BUSY = Fault("503", effect=False)


@pytest.fixture
def proxy(moto: MotoServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    moto.use(monkeypatch)
    with FaultyProxy(moto.endpoint_url) as proxy:
        retries.take()
        yield proxy


@pytest.fixture
def store(moto: MotoServer, proxy: FaultyProxy) -> Iterator[Store]:
    opened = open_store(f"s3://{moto.make_bucket()}", S3Options(endpoint_url=proxy.endpoint_url))
    yield opened
    opened.close()


def test_what_botocore_makes_again(store: Store, proxy: FaultyProxy) -> None:
    """Of a server that is busy twice, two calls are counted: not the third, which is answered."""
    store.create("events/a", b"a")
    proxy.reset({0: BUSY, 1: Fault("reset", effect=False)})
    assert store.read("events/a", limit=9) == b"a"
    assert len(proxy.calls) == 3
    assert retries.take() == Counter({("s3", "503"): 1, ("s3", "ConnectionClosedError"): 1})
    # Taken once, they are not counted again; and an answer at once is no retry.
    assert store.read("events/a", limit=9) == b"a"
    assert retries.take() == Counter()


def test_the_last_attempt_is_not_made_again(store: Store, proxy: FaultyProxy) -> None:
    """After three attempts botocore gives up: two of them were made again."""
    store.create("events/a", b"a")
    proxy.reset(always=BUSY)
    with pytest.raises(TransientStoreError):
        store.read("events/a", limit=9)
    assert retries.take() == Counter({("s3", "503"): 2})


def test_what_the_store_makes_again(store: Store, proxy: FaultyProxy) -> None:
    """A put is made again by the store, and so is a read whose body breaks off."""
    proxy.reset({0: BUSY})
    store.create("events/a", b"abcd" * 99)
    assert retries.take() == Counter({("s3", "503"): 1})
    proxy.reset({0: Fault("cut", effect=True)})
    assert len(store.read("events/a", limit=999)) == 396
    (((backend, error_type), many),) = retries.take().items()
    assert (backend, many, error_type.isidentifier()) == ("s3", 1, True)
