"""Whatever documents Elasticsearch holds: comparing them takes time and memory in proportion to them at most.

What Elasticsearch answers is replaced by bytes of any size, which the real client's parser gets.
"""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from elastic_transport import JsonSerializer

from custody.archive.reader import read_archive, read_manifest
from custody.archive.trusted import standing
from custody.store.open import open_store
from tasks.search.client import Search
from tasks.search.reconcile import _Comparison
from tests.helpers.growth import BASE, SHAPES, check_growth
from tests.helpers.sample import Growing
from tests.helpers.search import LOG, now_event, search_settings

_PARSE = JsonSerializer().loads
_FLOOR = 256 * 1024
"""Bytes below which memory follows from the five events, not from documents."""


class Canned(Search):
    """One that is asked for documents and answers bytes, page by page."""

    pages: tuple[bytes, ...] = ()
    _next = 0

    def _answer(self, asked: Mapping[str, Any]) -> Mapping[str, Any]:
        rejected = asked["index"] == self.rejected
        page = b"" if rejected else self.pages[self._next]
        self._next += not rejected
        total = {"value": len(self.pages) * asked["size"]}
        answer: Mapping[str, Any] = _PARSE(b'{"hits":{"hits":[' + page + b']},"_shards":{"successful":1,"total":1}}')
        answer["hits"]["total"] = total
        return answer


def hit(source: bytes, offset: int = 2) -> bytes:
    return b'{"_index":"audit-2026.03.01","sort":[%d,"",0],"_source":%b}' % (offset, source)


@pytest.fixture
def compare(tmp_path: Path) -> Callable[..., list[str]]:
    """Return what compares pages of hits with a statement of five events, and returns the kinds of findings."""
    growing = Growing(tmp_path)
    growing.append(1, now_event)
    settings, store = search_settings(growing, "http://127.0.0.1:1", "audit"), open_store(str(growing.folder))
    holds = standing(store, read_archive(store).id, settings.trust_at_hand())(LOG)
    statement = read_manifest(store, LOG, 0, holds).statement

    def compare(*pages: bytes) -> list[str]:
        search = Canned(settings.search)
        search.pages = pages
        # Nothing is promised, so that what is missing is not indexed.
        comparison = _Comparison(search, store, LOG, datetime.now(UTC), 0, 0, Counter())
        return [difference.to_dict()["finding"] for difference in comparison.compare(statement)]

    return compare


def inside(shape: bytes) -> bytes:
    return hit(b'{"@custody":{"offset":2},"event_type":%b}' % shape)


def as_origin(shape: bytes) -> bytes:
    return hit(b'{"@custody":%b}' % shape)


def as_document(shape: bytes) -> bytes:
    return hit(shape)


def many(shape: bytes) -> bytes:
    """Return as many small documents as have the size of a shape, half of them of one offset."""
    number = len(shape) // 100
    return b",".join(hit(b'{"a":1}', at % 5 if at % 2 else 2) for at in range(number))


FRAMES = [inside, as_origin, as_document]


@pytest.mark.parametrize("frame", FRAMES)
def test_time_grows_with_a_document_at_most(compare: Callable[..., list[str]], frame: Callable[[bytes], bytes]) -> None:
    """No shape of a document takes more time than in proportion to its size, and each is a finding."""
    for shape, make in SHAPES.items():
        try:
            check_growth(lambda data: compare(frame(data)), make)
            assert set(compare(frame(make(BASE)))) <= {"unreadable", "index-edited", "index-extra"}
        except AssertionError as error:
            error.add_note(shape)
            raise


def test_time_grows_with_the_number_of_documents_at_most(compare: Callable[..., list[str]]) -> None:
    """So does the time for many documents, of one offset or several."""
    check_growth(lambda data: compare(many(data)), SHAPES["blank"])


def test_memory_is_that_of_one_answer(compare: Callable[..., list[str]]) -> None:
    """Twice and four times as many full answers of large documents take no more memory."""
    page = b",".join([hit(b'{"a":"%b"}' % (b"a" * 2000))] * 1000)
    compare(page, b"")
    peaks = [peak(compare, *[page] * number, b"") for number in (1, 2, 4)]
    assert peaks[2] < 1.5 * peaks[0], peaks


@pytest.mark.parametrize("frame", FRAMES)
def test_memory_grows_with_a_document_at_most(
    compare: Callable[..., list[str]], frame: Callable[[bytes], bytes]
) -> None:
    """No shape takes more memory than in proportion to its size."""
    for shape, make in SHAPES.items():
        small, large = (peak(compare, frame(make(factor * BASE))) for factor in (1, 4))
        assert large < 6 * max(small, _FLOOR), (shape, small, large)


def test_memory_grows_with_the_number_of_documents_at_most(compare: Callable[..., list[str]]) -> None:
    """So does the memory for many documents."""
    small, middle, large = (peak(compare, many(bytes(factor * BASE))) for factor in (4, 8, 16))
    assert large < 6 * max(small, _FLOOR), (small, middle, large)


def peak(compare: Callable[..., list[str]], *pages: bytes) -> int:
    """Return the most bytes that a comparison takes at a time."""
    tracemalloc.start()
    try:
        compare(*pages)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
