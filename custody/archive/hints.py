"""Searches from a hint that may be wrong.

A hint may make a search cheaper, and never decide what is found: a search that it misled is made again without it.
That shows only if what it leads to is refused or gives nothing. So a search that accepts entries whose signature it
cannot check takes its hint from `audited`, and never from an audit that anybody put (`guesses`).
"""

import logging
from collections.abc import Callable
from typing import TypeVar

from custody.errors import CustodyError, TransientStoreError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def unmisled(search: Callable[[int], T], hint: int, finds: Callable[[T], bool]) -> T:
    """Return what a search finds from a hint; if it fails there or finds nothing, what it finds without one.

    Args:
        search: takes the hint; 0 is none.
        hint: where it may begin.
        finds: whether a result is more than nothing.

    Raises:
        CustodyError: as the search without a hint; or the store does not answer, which no hint can bring about.
    """
    if hint:
        try:
            result = search(hint)
        except TransientStoreError:
            raise
        except CustodyError as error:
            logger.debug("searching again, without a hint: %s", error)
        else:
            if finds(result):
                return result
    return search(0)
