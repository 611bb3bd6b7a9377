"""What an event says of a GraphQL operation: its hashes, its shape, and the rows of its result.

`query_hash` is the SHA-256 of Apollo's operation signature (custody/emit/document.py), or of a key where there is
none: of Apollo's `## GraphQLParseFailure`, `## GraphQLValidationFailure`, `## GraphQLUnknownOperationName`, or of our
`## TooLarge` and `## MalformedRequest`. Without graphql-core, and where only a server knows the text, it is the
document's own hash; `hashed` says which.

A miss of the cache takes milliseconds, so it is for a worker's thread.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from types import ModuleType
from typing import Final, Literal

from custody.emit.operations import NAME_CHARACTERS, TOO_LARGE, Operation
from custody.format.limits import INT_MAX, MIB
from custody.format.patterns import possessive

PARSE_FAILURE: Final = "## GraphQLParseFailure"
VALIDATION_FAILURE: Final = "## GraphQLValidationFailure"
UNKNOWN_OPERATION: Final = "## GraphQLUnknownOperationName"

DOCUMENT_BYTES: Final = 65_536
"""Bytes of a document that is parsed."""
DOCUMENT_TOKENS: Final = 5_000
"""Its tokens, comments not counted."""
DOCUMENT_DEPTH: Final = 100
"""Brackets in it that are open at once: graphql-core's parser calls itself for each."""
CACHE_ENTRIES: Final = 4_096
CACHE_BYTES: Final = 16 * MIB
"""Bytes of signatures in the cache: whoever sends a new document each time fills it with long ones."""

_ENTRY_BYTES = 1_024
"""About what an entry takes beside its signature."""
_IN_BLOCK, _IN_STRING = r'\\"""|[^"]|"(?!"")', r'[^"\\\n\r]|\\.'
# A string without its end is one token too. Otherwise each quote in it would begin a search to the end of the text.
_TOKEN = re.compile(
    rf'#[^\n\r]*+|"""{possessive(_IN_BLOCK)}(?:""")?|"{possessive(_IN_STRING)}"?'
    r"|(?P<open>[\[{(])|(?P<close>[\]})])|\.\.\.|[_A-Za-z][_0-9A-Za-z]*+|[-0-9][-+.0-9A-Za-z]*+|[^\s,\ufeff]"
)

Hashed = Literal["signature", "document", "document-id", "failure"]


@dataclass(frozen=True, slots=True)
class Analysis:
    """What an event says of an operation.

    Attributes:
        query_hash: `sha256:` and 64 digits.
        hashed: what that is the hash of. `document`: nobody could parse the text, or has it here.
        document_hash: of the raw text, as APQ has it; None without one.
        failure: the key that was hashed instead of a signature.
        signature: the text that was hashed. It has no literals.
        operation_type: query, mutation or subscription.
        operation_name: as the client or the document has it, at most 256 characters.
        aliases: fields with an alias, fragments put in.
        root_fields: fields that are executed at the root.
        depth: fields inside each other.
        complexity: fields, those below a `first`, `last` or `limit` times 10. 2^63-1 if it was too large to tell, 0 if
            nobody knows.
        introspection: whether it asks for the schema.
    """

    query_hash: str
    hashed: Hashed
    document_hash: str | None = None
    failure: str | None = None
    signature: str | None = None
    operation_type: str | None = None
    operation_name: str | None = None
    aliases: int | None = None
    root_fields: int | None = None
    depth: int | None = None
    complexity: int = 0
    introspection: bool = False


class Analyzer:
    """Analyses operations, and remembers the latest: at most so many, with signatures of so many bytes.

    It is for one thread at a time.

    Args:
        entries: how many it remembers.
        bytes_limit: bytes that they may take.
        runs_first: whether the server runs the first of several operations where none is named. Strawberry does.
    """

    def __init__(
        self, entries: int = CACHE_ENTRIES, bytes_limit: int = CACHE_BYTES, *, runs_first: bool = False
    ) -> None:
        self._entries = entries
        self._runs_first = runs_first
        self._bytes_limit = bytes_limit
        self._bytes = 0
        self._latest: OrderedDict[bytes, Analysis] = OrderedDict()

    def __len__(self) -> int:
        return len(self._latest)

    def analyze(self, operation: Operation) -> Analysis:
        """Return what an event says of an operation. It never fails.

        A hash without a text is that of a text seen before, if it is remembered: APQ sends the text once.
        """
        name = clean_name(operation.name)
        if operation.failure:
            return _failed(operation.failure, operation.document_hash, name)
        if operation.document is not None:
            raw = operation.document.encode("utf-8", "surrogatepass")
            return self._remembered(sha256(raw).digest(), operation.name) or self._analyze(
                operation.document, raw, operation.name
            )
        if operation.document_hash:
            known = self._remembered(bytes.fromhex(operation.document_hash.removeprefix("sha256:")), operation.name)
            return known or Analysis(operation.document_hash, "document", operation.document_hash, operation_name=name)
        return Analysis(_hash(operation.document_id or ""), "document-id", operation_name=name)

    def _remembered(self, digest: bytes, name: str | None) -> Analysis | None:
        key = _key(digest, name)
        analysis = self._latest.get(key)
        if analysis is not None:
            self._latest.move_to_end(key)
        return analysis

    def _analyze(self, document: str, raw: bytes, name: str | None) -> Analysis:
        analysis = analyze_document(document, raw, name, runs_first=self._runs_first)
        self._latest[_key(sha256(raw).digest(), name)] = analysis
        self._bytes += _size(analysis)
        while len(self._latest) > self._entries or self._bytes > self._bytes_limit:
            _, oldest = self._latest.popitem(last=False)
            self._bytes -= _size(oldest)
        return analysis


def analyze_document(document: str, raw: bytes, operation_name: str | None, *, runs_first: bool = False) -> Analysis:
    """Return what an event says of an operation of a document, whose bytes are `raw`."""
    document_hash = _hash(raw)
    name = clean_name(operation_name)
    if len(raw) > DOCUMENT_BYTES or not _is_parsable(document):
        return _failed(TOO_LARGE, document_hash, name)
    parser = _document()
    if parser is None:
        return Analysis(document_hash, "document", document_hash, operation_name=name)
    try:
        described = parser.describe(document, operation_name, runs_first=runs_first)
    except parser.ParseFailure:
        return _failed(PARSE_FAILURE, document_hash, name)
    except parser.ValidationFailure:
        return _failed(VALIDATION_FAILURE, document_hash, name)
    except parser.UnknownOperation:
        return _failed(UNKNOWN_OPERATION, document_hash, name)
    except RecursionError:
        return _failed(TOO_LARGE, document_hash, name)
    return Analysis(
        query_hash=_hash(described.signature),
        hashed="signature",
        document_hash=document_hash,
        signature=described.signature,
        operation_type=described.kind,
        operation_name=name or clean_name(described.name),
        aliases=described.measure.aliases,
        root_fields=described.root_fields,
        depth=described.measure.depth,
        complexity=described.measure.complexity,
        introspection=described.introspection,
    )


def result_rows(response: object) -> int:
    """Return the rows of a decoded response: items in the lists directly under the root fields.

    Anything else under a root field is one row, and null is none. Of a response in parts (`@defer`, `@stream`), give it
    each part: the items that a part adds to a list under a root field count, if the part names their path.
    """
    if not isinstance(response, dict):
        return 0
    parts = response.get("incremental")
    later = [part for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return sum(map(_rows, [response, *later]))


def _rows(part: dict[str, object]) -> int:
    path, items, data = part.get("path"), part.get("items"), part.get("data")
    if isinstance(path, list) and path:
        return len(items) if isinstance(items, list) and len(path) <= 2 else 0
    if not isinstance(data, dict) or "id" in part:
        return 0
    return sum(len(value) if isinstance(value, list) else value is not None for value in data.values())


def clean_name(name: str | None) -> str | None:
    """Return an operation's name as an event may have it: short, and without what UTF-8 cannot hold."""
    return name[:NAME_CHARACTERS].encode("utf-8", "replace").decode() if name else None


def _is_parsable(document: str) -> bool:
    """Return whether a document has few enough tokens, and nests so little, that it may be parsed."""
    tokens = depth = 0
    for match in _TOKEN.finditer(document):
        if match[0][0] == "#":
            continue
        tokens += 1
        if match.lastgroup == "open":
            depth += 1
        elif match.lastgroup == "close":
            depth -= 1
        if tokens > DOCUMENT_TOKENS or depth > DOCUMENT_DEPTH:
            return False
    return True


@cache
def _document() -> ModuleType | None:
    """Return the module that parses, if graphql-core is installed."""
    try:
        import custody.emit.document
    except ImportError:
        return None
    return custody.emit.document


def _failed(key: str, document_hash: str | None, name: str | None) -> Analysis:
    complexity = INT_MAX if key == TOO_LARGE else 0
    return Analysis(_hash(key), "failure", document_hash, key, operation_name=name, complexity=complexity)


def _hash(text: str | bytes) -> str:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return f"sha256:{sha256(raw).hexdigest()}"


def _key(digest: bytes, name: str | None) -> bytes:
    # A name may be as long as a body. So its digest is what is remembered.
    return digest + (sha256(name.encode("utf-8", "surrogatepass")).digest() if name else b"")


def _size(analysis: Analysis) -> int:
    return _ENTRY_BYTES + len(analysis.signature or "")
