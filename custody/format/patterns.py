"""What regular expressions need to mean the same in each Python. Pure."""

import sys

_IS_RIGHT = sys.version_info >= (3, 11, 5)


def possessive(group: str, repeat: str = "*") -> str:
    """Return a pattern that repeats a group as often as it can, and gives nothing back, as `*+` behind it says.

    Before Python 3.11.5 that may match too much (https://github.com/python/cpython/issues/106052). So there it is an
    atomic group, which says the same. Elsewhere it is not, for each repetition in one takes 120 bytes of memory.

    Args:
        group: the pattern that is repeated.
        repeat: how often, without a sign behind it: `*`, `+`, `{0,4}`.
    """
    return f"(?:{group}){repeat}+" if _IS_RIGHT else f"(?>(?:{group}){repeat})"
