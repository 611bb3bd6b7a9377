"""What an event says of a GraphQL operation. The oracle for signatures is Apollo's npm package.

`signatures.json` was made by it; `made by` in the file says with which versions. Three thousand documents drawn at
random gave the same signatures as well, with graphql-core 3.2.14 and 3.3.2; forty of them are in the file.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from custody.emit import graphql
from custody.emit.graphql import (
    DOCUMENT_BYTES,
    DOCUMENT_DEPTH,
    DOCUMENT_TOKENS,
    PARSE_FAILURE,
    UNKNOWN_OPERATION,
    VALIDATION_FAILURE,
    Analysis,
    Analyzer,
    result_rows,
)
from custody.emit.operations import MALFORMED, TOO_LARGE, Operation
from custody.format.limits import INT_MAX
from tests.helpers.growth import check_growth

CASES = json.loads((Path(__file__).parent / "signatures.json").read_text(encoding="utf-8"))["cases"]


def analyze(document: str, name: str | None = None) -> Analysis:
    """Return the analysis of a document, by an analyzer that remembers nothing."""
    return Analyzer().analyze(Operation(document=document, name=name))


def digest(text: str) -> str:
    """Return a hash as an event has it."""
    return f"sha256:{sha256(text.encode()).hexdigest()}"


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_a_signature_is_apollos(case: dict[str, str]) -> None:
    """Whoever has Apollo's reports finds the same operation by the same hash."""
    analysis = analyze(case["document"], case["operation"])
    assert (analysis.signature, analysis.hashed) == (case["signature"], "signature")
    assert analysis.query_hash == digest(case["signature"])
    assert analysis.document_hash == digest(case["document"])


def test_a_signature_has_no_literal() -> None:
    """Values of users are in none, and do not change it."""
    document = 'mutation M { login(user: "%s", pin: %d, tags: ["%s"], more: {a: "%s"}) { a @b(c: "%s") } }'
    analyses = {
        analyze(document % values).query_hash for values in [("ada", 1, "x", "y", "z"), ("bob", 2, "", "q", "")]
    }
    assert len(analyses) == 1
    assert "ada" not in str(analyze(document % ("ada", 1, "ada", "ada", "ada")))


@pytest.mark.parametrize(
    ("document", "name", "key"),
    [
        ("{ a", None, PARSE_FAILURE),
        ("", None, PARSE_FAILURE),
        ("\x00", None, PARSE_FAILURE),
        ('{ a(b: "\ud800', None, PARSE_FAILURE),
        ("query A { a } query B { b }", None, UNKNOWN_OPERATION),
        ("query A { a } query B { b }", "C", UNKNOWN_OPERATION),
        ("{ a }", "C", UNKNOWN_OPERATION),
        ("query A { a }", "C", UNKNOWN_OPERATION),
        ("fragment F on T { a }", None, UNKNOWN_OPERATION),
        ("query A { a } query A { b }", "A", VALIDATION_FAILURE),
        ("{ a } { b }", None, VALIDATION_FAILURE),
        ("{ a } query A { b }", "A", VALIDATION_FAILURE),
        ("{ ...F }", None, VALIDATION_FAILURE),
        ("{ a } fragment F on T { ...G }", None, VALIDATION_FAILURE),
        ("{ a ...F } fragment F on T { a } fragment F on T { b }", None, VALIDATION_FAILURE),
        ("{ ...F } fragment F on T { ...F }", None, VALIDATION_FAILURE),
        ("{ ...F } fragment F on T { a { ...G } } fragment G on T { ... { ...F } }", None, VALIDATION_FAILURE),
        ("{ a } type T { a: Int }", None, VALIDATION_FAILURE),
        ("{" + "a " * DOCUMENT_TOKENS + "}", None, TOO_LARGE),
        ("{ a } #" + "x" * DOCUMENT_BYTES, None, TOO_LARGE),
        ("{ a } #" + "é" * (DOCUMENT_BYTES // 2), None, TOO_LARGE),
        ("{a" * (DOCUMENT_DEPTH + 1) + "}" * (DOCUMENT_DEPTH + 1), None, TOO_LARGE),
        ("{a(b:" + "[" * DOCUMENT_DEPTH + "]" * DOCUMENT_DEPTH + ")}", None, TOO_LARGE),
        ("query($a:" + "[" * DOCUMENT_DEPTH + "I", None, TOO_LARGE),
    ],
)
def test_without_a_signature_a_key_is_hashed(document: str, name: str | None, key: str) -> None:
    """Apollo's keys, and ours for what is too large, tell apart why there is none."""
    analysis = analyze(document, name)
    assert (analysis.failure, analysis.hashed, analysis.signature) == (key, "failure", None)
    assert analysis.query_hash == digest(key)
    assert analysis.document_hash == f"sha256:{sha256(document.encode('utf-8', 'surrogatepass')).hexdigest()}"
    assert (analysis.operation_name, analysis.complexity) == (name, INT_MAX if key == TOO_LARGE else 0)


def test_a_document_at_each_limit_is_measured() -> None:
    """So the limits are what they say."""
    assert analyze("{" + "a " * (DOCUMENT_TOKENS - 2) + "}").complexity == DOCUMENT_TOKENS - 2
    assert analyze("{a}" + " " * (DOCUMENT_BYTES - 3)).complexity == 1
    assert analyze("{a" * DOCUMENT_DEPTH + "}" * DOCUMENT_DEPTH).depth == DOCUMENT_DEPTH
    assert analyze("{a #" + "{" * 60_000 + "\n}").complexity == 1
    assert analyze("{a " + "#b\n" * 2 * DOCUMENT_TOKENS + "}").complexity == 1
    assert analyze('{a(b: """' + '{ \\""" " ' * 6_000 + '""")}').complexity == 1


def test_what_an_alias_attack_shows() -> None:
    """A hundred logins in one operation have the signature of many fields, and are counted."""
    attack = analyze("mutation { " + " ".join(f'a{n}: login(p: "{n}") {{ token }}' for n in range(100)) + " }")
    assert (attack.aliases, attack.root_fields, attack.depth, attack.complexity) == (100, 100, 2, 200)
    assert (attack.operation_type, attack.introspection) == ("mutation", False)


@pytest.mark.parametrize(
    ("document", "numbers"),
    [
        ("{ a }", (0, 1, 1, 1)),
        ("{ a { b { c } } d }", (0, 2, 3, 4)),
        ("{ users(first: 5) { id name } }", (0, 1, 2, 21)),
        ("{ users(last: $n) { posts(limit: 2) { id } } }", (0, 1, 3, 111)),
        ("{ users(skip: 5) { id } }", (0, 1, 2, 2)),
        ("{ x: a ... { y: b } ... on T { c } }", (2, 3, 1, 3)),
        ("{ ...F ...F a { ...F } } fragment F on T { x: b { c } }", (3, 2, 3, 7)),
        ("{ a a a }", (0, 1, 1, 3)),
    ],
)
def test_numbers(document: str, numbers: tuple[int, int, int, int]) -> None:
    """Fragments are put in at each spread; below a page everything counts ten times; a key at the root runs once."""
    analysis = analyze(document)
    assert (analysis.aliases, analysis.root_fields, analysis.depth, analysis.complexity) == numbers


@pytest.mark.parametrize(
    ("document", "introspection"),
    [
        ("{ __schema { types { name } } }", True),
        ('{ a x: __type(name: "T") { name } }', True),
        ("{ ...F } fragment F on Query { ... { __schema { a } } }", True),
        ("{ __typename a }", False),
        ("{ a { __schema } }", False),
    ],
)
def test_introspection(document: str, introspection: bool) -> None:
    """An alias or a fragment does not hide it."""
    assert analyze(document).introspection is introspection


def test_names() -> None:
    """The name is the client's, or the document's; short, and text that UTF-8 can hold."""
    assert analyze("query Q { a }").operation_name == "Q"
    assert analyze("query Q { a }", "").operation_name == "Q"
    assert analyze("query Q { a } subscription S { b }", "S").operation_type == "subscription"
    assert analyze("{ a }").operation_name is None
    assert analyze(f"query {'q' * 999} {{ a }}", "q" * 999) == replace(
        analyze(f"query {'q' * 999} {{ a }}"), operation_name="q" * 256
    )
    assert analyze("{ a }", "\ud800" + "x" * 300).operation_name == "?" + "x" * 255


def test_a_server_may_run_the_first_of_several() -> None:
    """Strawberry does where none is named, so what ran is known there too."""
    analyzer = Analyzer(runs_first=True)
    two = "query A { a } query B { b }"
    assert analyzer.analyze(Operation(document=two)).signature == "query A{a}"
    assert analyzer.analyze(Operation(document=two, name="B")).signature == "query B{b}"
    assert analyzer.analyze(Operation(document=two, name="C")).failure == UNKNOWN_OPERATION
    assert analyzer.analyze(Operation(document="fragment F on T { a }")).failure == UNKNOWN_OPERATION


def test_importing_it_is_cheap() -> None:
    """An application server loads no command line, no cryptography, and no graphql-core before the first query."""
    script = (
        "import sys, custody.emit.address, custody.emit.graphql, custody.emit.operations, custody.emit.request\n"
        "heavy = {'graphql', 'rich', 'typer', 'pydantic', 'cryptography', 'isal', 'boto3', 'confluent_kafka'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    root = Path(__file__).parents[3]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.strip() == "[]"


@dataclass(frozen=True)
class Selected:
    """A selection that is written as text, and counted by putting in all fragments."""

    text: str
    aliases: int
    depth: int
    complexity: int


def _join(parts: list[Selected]) -> Selected:
    return Selected(
        "{ " + " ".join(part.text for part in parts) + " }",
        sum(part.aliases for part in parts),
        max(part.depth for part in parts),
        sum(part.complexity for part in parts),
    )


def _field(below: Selected, alias: bool, page: bool) -> Selected:
    text = f"{'x: ' if alias else ''}f{'(first: 3)' if page else ''} {below.text}"
    return Selected(text, below.aliases + alias, below.depth + 1, 1 + (10 if page else 1) * below.complexity)


def _selection(draw: Random, known: list[Selected], levels: int) -> Selected:
    """Return a selection of fields, inline fragments and the fragments that are known."""
    parts = []
    for _ in range(draw.randint(1, 3)):
        kind = draw.random() if levels else 1.0
        if kind < 0.4:
            parts.append(_field(_selection(draw, known, levels - 1), draw.random() < 0.3, draw.random() < 0.3))
        elif kind < 0.6:
            inner = _selection(draw, known, levels - 1)
            parts.append(replace(inner, text=f"... {inner.text}"))
        else:
            parts.append(draw.choice([Selected("leaf", 0, 1, 1), Selected("x: leaf", 1, 1, 1), *known]))
    return _join(parts)


@given(st.integers(0, 2**32))
def test_numbers_are_those_of_the_document_with_its_fragments_put_in(seed: int) -> None:
    """Each fragment is measured once, and counts as if its text stood at each spread."""
    draw = Random(seed)
    known: list[Selected] = []
    definitions = []
    for at in range(draw.randint(0, 3)):
        fragment = _selection(draw, known, 2)
        definitions.append(f"fragment F{at} on T {fragment.text}")
        known.append(replace(fragment, text=f"...F{at}"))
    whole = _selection(draw, known, 3)
    definitions.append(whole.text)
    draw.shuffle(definitions)
    analysis = analyze(" ".join(definitions))
    assert (analysis.aliases, analysis.depth, analysis.complexity) == (whole.aliases, whole.depth, whole.complexity)


@given(st.text(max_size=40), st.one_of(st.none(), st.text(max_size=5)))
def test_no_text_makes_it_fail(document: str, name: str | None) -> None:
    """Whatever a client sends is analysed."""
    assert analyze(document, name).query_hash.startswith("sha256:")


@given(st.text(alphabet='{}()[]:$!.@#"\\ ab1-=\n', max_size=60))
def test_no_text_of_graphqls_characters_makes_it_fail(document: str) -> None:
    """Nor text that is nearly GraphQL."""
    assert analyze(document).query_hash.startswith("sha256:")


def bomb(levels: int, spreads: int) -> str:
    """Return a document whose fragments, put in, are `spreads` to the power of `levels` fields."""
    inner = "".join(f"fragment F{n} on T {{ {f'...F{n + 1} ' * spreads} }} " for n in range(levels))
    return f"{inner} fragment F{levels} on T {{ x: a }} {{ ...F0 }}"


def test_numbers_end_at_the_largest_of_an_event() -> None:
    """A fragment bomb has a number that an event can have."""
    analysis = analyze(bomb(200, 5))
    assert (analysis.aliases, analysis.complexity, analysis.depth) == (INT_MAX, INT_MAX, 1)
    paged = analyze("{ a(first: 1) " * 60 + "{ b }" + "}" * 60)
    assert (paged.complexity, paged.depth) == (INT_MAX, 61)


SHAPES: Mapping[str, Callable[[int], str]] = {
    "fields": lambda size: "{" + "a " * (size // 2) + "}",
    "bombs": lambda size: bomb(size // 40, 2),
    "chains": lambda size: (
        "{ ...F0 } fragment F0 on T { a }" + "".join(f"fragment F{n + 1} on T {{ ...F{n} }}" for n in range(size // 28))
    ),
    "circles": lambda size: (
        "{ ...F0 }" + "".join(f"fragment F{n} on T {{ ...F{(n + 1) % (size // 28)} }}" for n in range(size // 28))
    ),
    "operations": lambda size: "".join(f"query Q{n} {{ a }}" for n in range(size // 16)),
    "operations with one fragment": lambda size: (
        "fragment F on T {" + "a " * (size // 4) + "}" + "".join(f"query Q{n}{{...F}}" for n in range(size // 32))
    ),
    "arguments": lambda size: "{ a(" + "".join(f"b{n}: 1 " for n in range(size // 8)) + ") }",
    "objects": lambda size: "{ a(b: {" + "".join(f"b{n}: 1 " for n in range(size // 8)) + "}) }",
    "variables": lambda size: "query(" + "".join(f"$b{n}: I " for n in range(size // 9)) + ") { a }",
    "directives": lambda size: "{ a" + " @b" * (size // 3) + " }",
    "unlike root fields": lambda size: "{" + "".join(f"a{n} " for n in range(size // 6)) + "}",
    "comments": lambda size: "{ a " + "#\n" * (4 * size) + "}",
    "a string": lambda size: '{ a(b: "' + "x" * (4 * size) + '") }',
    "a block": lambda size: '{ a(b: """' + ' \\"""\n' * size + '""") }',
    "a block without end": lambda size: '{ a(b: """' + '\\"""' * size,
    "escapes without end": lambda size: '{ a(b: "' + '\\"' * (4 * size),
    "quotes": lambda size: '" ' * size,
    "openers": lambda size: "{a" * size,
    "spaces": lambda size: "{ a" + " " * (4 * size) + "}",
}


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_documents_take_time_in_proportion(name: str) -> None:
    """No document that is parsed takes longer than its size, and none at a limit takes half a second."""
    documents = {size: SHAPES[name](size // 16) for size in (32 * 1024, 64 * 1024, 128 * 1024)}
    check_growth(lambda data: analyze(documents[len(data)]), bytes)
    began = time.process_time()
    analyze(SHAPES[name](DOCUMENT_BYTES // 8))
    assert time.process_time() - began < 0.5


def test_a_stack_that_ends_in_the_parser_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """graphql-core before 3.3 lets RecursionError through, to a caller that is deep in calls itself."""

    def parse(*_: object, **__: object) -> object:
        raise RecursionError

    monkeypatch.setattr("custody.emit.document.parse", parse)
    assert analyze("{ a }").failure == TOO_LARGE


def test_a_document_of_a_megabyte_is_not_parsed() -> None:
    """Its hash is taken, and nothing else."""
    began = time.process_time()
    analysis = analyze("{" + "a " * 500_000 + "}")
    assert analysis.failure == TOO_LARGE
    assert time.process_time() - began < 0.1


def test_what_was_seen_is_remembered() -> None:
    """A document is parsed once for each of its operations' names."""
    analyzer = Analyzer()
    document = "query A { a } query B { b }"
    first = analyzer.analyze(Operation(document=document, name="A"))
    assert analyzer.analyze(Operation(document=document, name="A")) is first
    assert analyzer.analyze(Operation(document=document, name="B")).signature == "query B{b}"
    assert analyzer.analyze(Operation(document=document)).failure == UNKNOWN_OPERATION
    assert len(analyzer) == 3


def test_trap_17_the_cache_is_bounded_and_forgets_the_oldest() -> None:
    """Hostile documents, each of them new, do not let memory grow."""
    analyzer = Analyzer(entries=3)
    first = analyzer.analyze(Operation(document="{ a0 }"))
    for number in range(1, 3):
        analyzer.analyze(Operation(document=f"{{ a{number} }}"))
    assert analyzer.analyze(Operation(document="{ a0 }")) is first
    analyzer.analyze(Operation(document="{ a3 }"))
    assert analyzer.analyze(Operation(document="{ a0 }")) is first
    assert len(analyzer) == 3
    narrow = Analyzer(bytes_limit=20_000)
    for number in range(50):
        narrow.analyze(Operation(document="{ a(b: $c) { " + "x" * 5_000 + f"{number} }} }}"))
        narrow.analyze(Operation(document="{ a }", name="n" * 100_000 + str(number)))
    assert len(narrow) <= 20_000 // 1_024
    assert sum(map(sys.getsizeof, narrow._latest)) < 3_000
    assert sum(len(analysis.signature or "") for analysis in narrow._latest.values()) < 20_000


def test_a_hash_without_a_text_is_that_of_a_text_seen_before() -> None:
    """APQ sends the text once. An unknown hash stands for itself, and is marked."""
    analyzer = Analyzer()
    unknown = analyzer.analyze(Operation(document_hash=digest("query Q { a }"), name="Q"))
    assert (unknown.hashed, unknown.query_hash, unknown.document_hash) == ("document", *[digest("query Q { a }")] * 2)
    assert (unknown.operation_name, unknown.complexity, unknown.depth) == ("Q", 0, None)
    seen = analyzer.analyze(Operation(document="query Q { a }", name="Q"))
    assert analyzer.analyze(Operation(document_hash=digest("query Q { a }"), name="Q")) == seen
    assert analyzer.analyze(Operation(document_hash=digest("query Q { a }"), name="P")).hashed == "document"


def test_what_has_no_text_and_no_hash() -> None:
    """An id stands for itself; a request that cannot be read has a key."""
    identity = Analyzer().analyze(Operation(document_id="users-v1"))
    assert (identity.hashed, identity.query_hash, identity.document_hash) == ("document-id", digest("users-v1"), None)
    failed = Analyzer().analyze(Operation(failure=MALFORMED, name="Q"))
    assert (failed.hashed, failed.query_hash, failed.failure) == ("failure", digest(MALFORMED), MALFORMED)
    assert failed.operation_name == "Q"


@pytest.fixture
def _without_graphql_core(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "graphql", None)
    monkeypatch.delitem(sys.modules, "custody.emit.document", raising=False)
    monkeypatch.delattr("custody.emit.document", raising=False)
    graphql._document.cache_clear()
    yield
    graphql._document.cache_clear()


@pytest.mark.usefixtures("_without_graphql_core")
def test_without_graphql_core_the_document_is_hashed_and_marked() -> None:
    """A server in another language needs no parser of ours: the raw text's hash still tells documents apart."""
    analysis = analyze("query Q { a }", "Q")
    assert analysis == Analysis(
        query_hash=digest("query Q { a }"),
        hashed="document",
        document_hash=digest("query Q { a }"),
        operation_name="Q",
    )
    assert analyze("{" * 999).failure == TOO_LARGE


@pytest.mark.parametrize(
    ("response", "rows"),
    [
        ({"data": {"users": [1, 2, 3]}}, 3),
        ({"data": {"users": [1, None], "me": {"a": [1, 2]}, "gone": None, "count": 7}}, 4),
        ({"data": {"users": []}}, 0),
        ({"data": {"on": False, "zero": 0, "text": ""}}, 3),
        ({"data": None, "errors": [1]}, 0),
        ({"errors": [1]}, 0),
        ({"data": {"users": [1]}, "incremental": [{"items": [1, 2], "path": ["users", 1]}], "hasNext": True}, 3),
        ({"incremental": [{"items": [1], "path": ["users", 0, "posts", 0]}, {"data": {"a": [1]}, "path": ["me"]}]}, 0),
        ({"incremental": [{"data": {"late": [1, 2]}, "path": []}, 7, {"data": {"x": 1}, "id": "0"}]}, 2),
        ({"data": {"a": [1, 2]}, "path": ["me"]}, 0),
        ({"data": [1]}, 0),
        ({"incremental": {}}, 0),
        ([], 0),
        (None, 0),
        ("x", 0),
    ],
)
def test_rows(response: object, rows: int) -> None:
    """Items of the lists directly under root fields, one for anything else, none for null."""
    assert result_rows(response) == rows
