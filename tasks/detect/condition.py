"""The condition of a Sigma rule (Sigma specification 2.1, "Condition"): parsed, and written as SQL.

    selection and not 1 of filter_*

It has names of search identifiers, `and`, `or`, `not`, parentheses, and `1 of`, `any of` or `all of` with a pattern or
`them`. `them` is every identifier whose name does not begin with an underscore. Anything else is an error.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from custody.errors import ConfigurationError

_TOKEN = re.compile(r"\s*([()]|[A-Za-z0-9_][A-Za-z0-9_*-]*|\*)")
_DEPTH: Final = 50
_CHARACTERS: Final = 10_000
_WORDS = frozenset({"and", "or", "not"})


def to_sql(condition: str, searches: Mapping[str, str]) -> str:
    """Return a condition as SQL.

    Args:
        condition: the condition's text.
        searches: the SQL of each search identifier.

    Raises:
        ConfigurationError: the condition is not understood; the message says where.
    """
    parser = _Parser(condition, searches)
    sql = parser.disjunction(0)
    parser.end()
    return sql


def _tokens(text: str) -> list[str]:
    if len(text) > _CHARACTERS:
        raise ConfigurationError(f"the condition is longer than {_CHARACTERS:,} characters")
    tokens, at = [], 0
    while text[at:].strip():
        match = _TOKEN.match(text, at)
        if match is None:
            rest = text[at:].strip()[:40]
            hint = "; counting is done by a correlation" if rest.startswith("|") else ""
            raise ConfigurationError(f"the condition is not understood at {rest!r}{hint}")
        tokens.append(match[1])
        at = match.end()
    return tokens


class _Parser:
    def __init__(self, text: str, searches: Mapping[str, str]) -> None:
        self._tokens, self._at, self._searches = _tokens(text), 0, searches
        self._used: set[str] = set()

    def disjunction(self, depth: int) -> str:
        """Parse parts with `or` between them."""
        if depth > _DEPTH:
            raise ConfigurationError(f"the condition is nested more than {_DEPTH} deep")
        return self._joined("or", lambda: self._joined("and", lambda: self._negation(depth)))

    def end(self) -> None:
        """Check that nothing is left, and that each identifier is used."""
        if self._at < len(self._tokens):
            raise ConfigurationError(f"the condition is not understood at {self._tokens[self._at]!r}")
        if unused := sorted(set(self._searches) - self._used):
            raise ConfigurationError(f"the condition does not use {', '.join(unused)}: use it, or remove it")

    def _joined(self, word: str, part: Callable[[], str]) -> str:
        parts = [part()]
        while self._peek().lower() == word:
            self._at += 1
            parts.append(part())
        return parts[0] if len(parts) == 1 else "(" + f" {word.upper()} ".join(parts) + ")"

    def _negation(self, depth: int) -> str:
        word = self._next()
        if word.lower() == "not":
            if depth > _DEPTH:
                raise ConfigurationError(f"the condition is nested more than {_DEPTH} deep")
            return f"(NOT {self._negation(depth + 1)})"
        if word == "(":
            inner = self.disjunction(depth + 1)
            if self._next() != ")":
                raise ConfigurationError("the condition lacks a closing parenthesis")
            return inner
        if self._peek().lower() == "of":
            self._at += 1
            return self._some(word.lower(), self._next())
        return self._search(word)

    def _some(self, how_many: str, pattern: str) -> str:
        if how_many not in {"1", "any", "all"}:
            raise ConfigurationError(f"the condition has '{how_many} of': use '1 of', 'any of' or 'all of'")
        if pattern.lower() == "them":
            names = [name for name in self._searches if not name.startswith("_")]
        else:
            names = [name for name in self._searches if fnmatchcase(name, pattern)]
        if not names:
            raise ConfigurationError(f"the condition's {pattern!r} fits no search identifier")
        word = " AND " if how_many == "all" else " OR "
        return "(" + word.join(map(self._search, names)) + ")"

    def _search(self, name: str) -> str:
        if name.lower() in _WORDS or name not in self._searches:
            known: Sequence[str] = sorted(self._searches)
            raise ConfigurationError(f"the condition has {name!r}, but the detection has only {', '.join(known)}")
        self._used.add(name)
        return self._searches[name]

    def _peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def _next(self) -> str:
        if self._at >= len(self._tokens):
            raise ConfigurationError("the condition ends too early")
        self._at += 1
        return self._tokens[self._at - 1]
