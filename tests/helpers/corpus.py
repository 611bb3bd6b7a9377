"""Edge cases of what FORMAT.md calls an event: one corpus, against which both the writer and the verifier are held.

A case is a Kafka record's value as received. `is_event` is FORMAT.md's verdict. `writer_accepts` is what a writer that
knows the six types must do: True archive it, False quarantine it, None either (a writer may quarantine more than
FORMAT.md does). The writer must
accept nothing that is no event. `line_is_event` is the verdict on the bytes that
an archive would hold, with 0x0A replaced by 0x20: it differs only where a raw newline stood inside a string.
"""

import json
from dataclasses import dataclass
from typing import Any

EVENT_LIMIT = 1_048_576
TIME = "2026-03-01T12:34:56.789012Z"


@dataclass(frozen=True, slots=True)
class Case:
    """One value, and whether it is an event."""

    name: str
    value: bytes
    is_event: bool
    reason: str
    writer_accepts: bool | None = None
    line_is_event: bool = False
    own_type: bool = False
    """Whether its type is not one of the six: a strict writer takes no such event."""

    @property
    def line(self) -> bytes:
        """What an archive would hold of it, without the newline that ends the line."""
        return self.value.replace(b"\n", b" ")


_COMMON: dict[str, Any] = {
    "timestamp": TIME,
    "request_id": "4d0c1a52-6fd5-4c36-9c33-3a1f3f0f7a11",
    "api_key_id": "key_7",
    "client_ip": "192.0.2.17",
}
EVENTS: dict[str, dict[str, Any]] = {
    "query_executed": {"query_hash": "9f86d081", "complexity": 12, "execution_time": 3.25, "result_rows": 40},
    "auth_attempt": {"status": "failure", "failure_reason": "expired", "key_version": 2, "key_age_days": 91},
    "authz_check": {"resource_type": "order", "resource_id": "o-1", "field_name": None, "permission_granted": False},
    "api_key_operation": {"operation": "rotated", "permissions": ["read", "write"], "tier": "gold"},
    "security_event": {
        "severity": "high",
        "alert_type": "rate_limit",
        "details": {"count": 9, "window": {"s": 60}},
        "action_taken": None,
    },
    "config_change": {
        "resource": "limits",
        "operation": "update",
        "changed_by": "ops@example.com",
        "changes": {"rate": [10, 20]},
        "approval_status": "approved",
    },
}
"""One good event of each type, without `event_type` itself."""
for _type, _fields in EVENTS.items():
    EVENTS[_type] = {"event_type": _type, **_COMMON, **_fields}


def compact(value: object) -> bytes:
    """Encode as compact JSON, in UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


BASE = compact(EVENTS["query_executed"])
"""A good event whose fields other cases bend."""
_HEAD = BASE[:-1]


def _with(extra: bytes) -> bytes:
    """Return the good event with raw bytes put before its closing brace."""
    return _HEAD + extra + b"}"


def _bent(type_: str = "query_executed", /, **fields: object) -> bytes:
    return compact(EVENTS[type_] | fields)


def _without(name: str, type_: str = "query_executed") -> bytes:
    return compact({key: value for key, value in EVENTS[type_].items() if key != name})


def _typed(name: bytes) -> bytes:
    """Return the good event with another type, given as it stands between the quotes."""
    return BASE.replace(b'"query_executed"', b'"' + name + b'"')


def at(time: str) -> bytes:
    """Return the good event at another time."""
    return _bent(timestamp=time)


def sized(size: int) -> bytes:
    """Return a good event of exactly this many bytes."""
    bare = _with(b',"pad":""')
    return _with(b',"pad":"' + b"x" * (size - len(bare)) + b'"')


def nested(depth: int, opener: bytes = b"[", closer: bytes = b"]") -> bytes:
    """Return a good event in which `depth` containers are open at once, the event itself counted."""
    return _with(b',"deep":' + opener * (depth - 1) + closer * (depth - 1))


def _nested_objects(depth: int) -> bytes:
    details = b'{"a":' * (depth - 2) + b"{}" + b"}" * (depth - 2)
    return compact(EVENTS["security_event"] | {"details": "@"}).replace(b'"@"', details)


def _good(name: str, value: bytes, reason: str, *, writer: bool | None = True) -> Case:
    return Case(name, value, True, reason, writer_accepts=writer, line_is_event=True)


def _bad(name: str, value: bytes, reason: str) -> Case:
    return Case(name, value, False, reason, writer_accepts=False)


def _foreign(name: str, value: bytes, reason: str) -> Case:
    """An event to FORMAT.md that the six types do not allow."""
    return Case(name, value, True, reason, writer_accepts=False, line_is_event=True)


def _own(name: str, value: bytes, reason: str) -> Case:
    """An event of a type that is not one of the six."""
    return Case(name, value, True, reason, writer_accepts=True, line_is_event=True, own_type=True)


_E = b'"event_type":"query_executed"'
_T = b'"timestamp":"' + TIME.encode() + b'"'

CASES: list[Case] = [
    # --- the six types
    *(_good(f"type {name}", compact(fields), "a good event") for name, fields in EVENTS.items()),
    _good("api_key_id null", _bent(api_key_id=None), "api_key_id may be null"),
    _good("client_ip v6", _bent(client_ip="2001:db8::17"), "IPv6"),
    _good("client_ip v4 in v6", _bent(client_ip="::ffff:192.0.2.1"), "IPv6"),
    _good("auth nulls", _bent("auth_attempt", failure_reason=None, key_version=None, key_age_days=None), "may be null"),
    _good("no permissions", _bent("api_key_operation", permissions=[]), "an empty list is a list"),
    _good("empty details", _bent("security_event", details={}), "an empty object is an object"),
    _good("integer execution_time", _bent(execution_time=3), "may have a fraction, need not"),
    _good("zero figures", _bent(complexity=0, execution_time=0, result_rows=0), "at least 0"),
    _good("unnamed field", _bent(region="eu", nested={"a": [1, None, True]}), "other fields are kept"),
    _good("minimal envelope order", compact(dict(reversed(EVENTS["authz_check"].items()))), "keys have no order"),
    _own("unknown type", _bent(event_type="login"), "a seventh type"),
    _own("type in other case", _bent(event_type="Query_Executed"), "names are compared as they are"),
    _own("type not ASCII", _bent(event_type="запрос"), "a string"),
    _own("bare own type", b'{"event_type":"login",' + _T + b"}", "the two fields that FORMAT.md asks for"),
    _own("own type, no address", _bent(event_type="login", client_ip="localhost"), "only the six are held to fields"),
    _own("own type, fields of any type", _bent(event_type="login", request_id=[{}], complexity="x"), "as before"),
    _own("indented own type", json.dumps({"event_type": "login", "timestamp": TIME}, indent=1).encode(), "white space"),
    _bad("own type twice", b'{"event_type":"login","event_type":"login",' + _T + b"}", "a key of ours twice"),
    _bad("own type, no time", b'{"event_type":"login"}', "no timestamp"),
    _bad("own type, 65 deep", b'{"event_type":"login",' + _T + b',"a":' + b"[" * 64 + b"]" * 64 + b"}", "too deep"),
    _bad("own type, bad UTF-8", b'{"event_type":"login",' + _T + b',"a":"\xff"}', "not UTF-8"),
    _foreign("bare minimum", b"{" + _E + b"," + _T + b"}", "the two fields that FORMAT.md asks for"),
    _foreign("no request_id", _without("request_id"), "a field of all types is missing"),
    _foreign("no complexity", _without("complexity"), "a field of the type is missing"),
    _foreign("negative complexity", _bent(complexity=-1), "at least 0"),
    _foreign("complexity is text", _bent(complexity="12"), "ill-typed"),
    _foreign("complexity is true", _bent(complexity=True), "ill-typed"),
    _foreign("complexity null", _bent(complexity=None), "ill-typed"),
    _foreign("negative execution_time", _bent(execution_time=-0.5), "at least 0"),
    _foreign("status pending", _bent("auth_attempt", status="pending"), "success or failure"),
    _foreign("severity urgent", _bent("security_event", severity="urgent"), "low, medium, high or critical"),
    _foreign("operation deleted", _bent("api_key_operation", operation="deleted"), "created, rotated or revoked"),
    _foreign("permissions is text", _bent("api_key_operation", permissions="read"), "a list"),
    _foreign("details is a list", _bent("security_event", details=[]), "an object"),
    _foreign("changes null", _bent("config_change", changes=None), "an object"),
    _foreign("permission_granted is 1", _bent("authz_check", permission_granted=1), "ill-typed"),
    _foreign("client_ip is a name", _bent(client_ip="localhost"), "neither IPv4 nor IPv6"),
    _foreign("client_ip out of range", _bent(client_ip="192.0.2.256"), "neither IPv4 nor IPv6"),
    _foreign("client_ip null", _bent(client_ip=None), "only api_key_id may be null"),
    # --- what is no object
    _bad("empty", b"", "an empty value"),
    _bad("white space", b" \t ", "nothing but white space"),
    _bad("one newline", b"\n", "nothing but white space"),
    _bad("null", b"null", "no object"),
    _bad("number", b"17", "no object"),
    _bad("string", b'"event_type timestamp"', "no object"),
    _bad("array", b"[" + BASE + b"]", "no object"),
    _bad("empty object", b"{}", "neither field"),
    _bad("empty array", b"[]", "no object"),
    _bad("text", b"hello", "no JSON"),
    _bad("cut short", BASE[:-1], "the object does not end"),
    _bad("cut in a string", BASE[: BASE.index(b"9f86") + 2], "the string does not end"),
    _bad("two documents", BASE + BASE, "two objects"),
    _bad("two documents, spaced", BASE + b" " + BASE, "two objects"),
    _bad("two documents, two lines", BASE + b"\n" + BASE, "two objects"),
    _bad("object and text", BASE + b"x", "trailing bytes"),
    _bad("object and comma", BASE + b",", "trailing bytes"),
    _bad("object and brace", BASE + b"}", "trailing bytes"),
    _bad("object and NUL", BASE + b"\x00", "trailing bytes"),
    _bad("NUL first", b"\x00" + BASE, "leading bytes"),
    _bad("gzip", b"\x1f\x8b\x08\x00" + BASE, "no JSON"),
    # --- the grammar
    _bad("trailing comma", _with(b","), "no JSON"),
    _bad("double comma", _with(b',,"a":1'), "no JSON"),
    _bad("leading comma", b"{," + BASE[1:], "no JSON"),
    _bad("trailing comma in array", _with(b',"a":[1,]'), "no JSON"),
    _bad("missing colon", _with(b',"a" 1'), "no JSON"),
    _bad("missing value", _with(b',"a":'), "no JSON"),
    _bad("bare key", _with(b",a:1"), "no JSON"),
    _bad("number as key", _with(b",1:1"), "no JSON"),
    _bad("single quotes", _with(b",'a':'b'"), "no JSON"),
    _bad("comment", _with(b"/* a */"), "no JSON"),
    _bad("line comment", BASE + b"// a", "no JSON"),
    _bad("mismatched brackets", _with(b',"a":[1}'), "no JSON"),
    _bad("mismatched closer", _with(b',"a":{"b":1]'), "no JSON"),
    _bad("NaN", _with(b',"a":NaN'), "NaN is not JSON"),
    _bad("Infinity", _with(b',"a":Infinity'), "Infinity is not JSON"),
    _bad("minus Infinity", _with(b',"a":-Infinity'), "Infinity is not JSON"),
    _bad("nan in array", _with(b',"a":[1,NaN]'), "NaN is not JSON"),
    _bad("True", _with(b',"a":True'), "literals are lower-case"),
    _bad("nul", _with(b',"a":nul'), "no literal"),
    _bad("nulll", _with(b',"a":nulll'), "no literal"),
    _bad("undefined", _with(b',"a":undefined'), "no literal"),
    _bad("leading zero", _with(b',"a":01'), "no number"),
    _bad("leading zero, negative", _with(b',"a":-01'), "no number"),
    _bad("double zero", _with(b',"a":00'), "no number"),
    _bad("plus", _with(b',"a":+1'), "no number"),
    _bad("lone minus", _with(b',"a":-'), "no number"),
    _bad("double minus", _with(b',"a":--1'), "no number"),
    _bad("no digit after point", _with(b',"a":1.'), "no number"),
    _bad("point then exponent", _with(b',"a":1.e5'), "no number"),
    _bad("no digit before point", _with(b',"a":.5'), "no number"),
    _bad("empty exponent", _with(b',"a":1e'), "no number"),
    _bad("empty signed exponent", _with(b',"a":1e+'), "no number"),
    _bad("hex", _with(b',"a":0x1F'), "no number"),
    _bad("underscore", _with(b',"a":1_000'), "no number"),
    _bad("digits of another script", _with(',"a":\u0661'.encode()), "no number"),
    _bad("digits of another script later", _with(',"a":1\u0661'.encode()), "no number"),
    _bad("two points", _with(b',"a":1.2.3'), "no number"),
    _good("zeros", _with(b',"a":[0,-0,0.0,-0.0,0e0,0E+0,0e-0]'), "numbers", writer=None),
    _good("numbers", _with(b',"a":[1,-1,10,1.5,-1.50,1e5,1E5,1e+5,1.5e-05]'), "numbers"),
    _good("beyond a float", _with(b',"a":1e400'), "numbers may be of any size", writer=None),
    _good("minus beyond a float", _with(b',"a":-1e400'), "numbers may be of any size", writer=None),
    _good("exponent of 30 digits", _with(b',"a":1e' + b"9" * 30), "numbers may be of any size", writer=None),
    _good("below a float", _with(b',"a":1e-400'), "numbers may be of any size", writer=None),
    _good("beyond 64 bits", _with(b',"a":18446744073709551616'), "numbers may be of any size", writer=None),
    _good("beyond 64 bits, negative", _with(b',"a":-9223372036854775809'), "numbers may be of any size", writer=None),
    _good("5000 digits", _with(b',"a":' + b"7" * 5000), "numbers may be of any size", writer=None),
    _good("5000 digits, negative", _with(b',"a":-' + b"7" * 5000), "numbers may be of any size", writer=None),
    _good("5000 digits of fraction", _with(b',"a":0.' + b"3" * 5000), "numbers may be of any size", writer=None),
    _good(
        "5000 digits, nested", _with(b',"a":{"b":[' + b"7" * 5000 + b"]}"), "numbers may be of any size", writer=None
    ),
    _good(
        "huge result_rows", BASE.replace(b":40}", b":" + b"7" * 5000 + b"}"), "numbers may be of any size", writer=None
    ),
    _good("huge execution_time", BASE.replace(b":3.25,", b":1e400,"), "numbers may be of any size", writer=None),
    # --- white space
    _good("spaces", json.dumps(EVENTS["config_change"]).encode(), "white space"),
    _good(
        "indented", json.dumps(EVENTS["config_change"], indent=2).encode(), "a newline between tokens is white space"
    ),
    _good("indented with tabs", json.dumps(EVENTS["config_change"], indent="\t").encode(), "white space"),
    _good("CR LF", json.dumps(EVENTS["auth_attempt"], indent=1).replace("\n", "\r\n").encode(), "CR is white space"),
    _good("CR first", b"\r" + BASE, "CR is white space", writer=None),
    _good("CR last", BASE + b"\r", "CR is white space", writer=None),
    _good("newline last", BASE + b"\n", "a newline is white space"),
    _good("CR LF last", BASE + b"\r\n", "white space", writer=None),
    _good("newline first", b"\n" + BASE, "a newline is white space", writer=None),
    _good("spaces around", b"  " + BASE + b"\t ", "white space", writer=None),
    _good("newline inside an array", _with(b',"a":[1,\n2\n]'), "a newline is white space"),
    _bad("form feed", _with(b'\x0c,"a":1'), "not JSON's white space"),
    _bad("vertical tab", BASE + b"\x0b", "not JSON's white space"),
    _bad("no-break space", _with(b'\xc2\xa0,"a":1'), "not JSON's white space"),
    _bad("line separator", BASE + b"\xe2\x80\xa8", "not JSON's white space"),
    _bad("next line", BASE + b"\xc2\x85", "not JSON's white space"),
    _bad("newline inside a number", _with(b',"a":1\n2'), "two numbers"),
    _bad("newline inside a literal", _with(b',"a":tr\nue'), "no literal"),
    # --- strings
    _good("newline escaped", _with(rb',"a":"x\ny"'), "an escape, not a newline"),
    _good("all escapes", _with(rb',"a":"\"\\\/\b\f\n\r\t\u0000\u001F\uabcd"'), "escapes"),
    _good("escaped pair", _with(rb',"a":"\ud83d\ude00"'), "a pair of surrogates"),
    _good("DEL", _with(b',"a":"\x7f"'), "RFC 8259 allows it unescaped"),
    _good("line separator in a string", _with(',"a":"\u2028\u2029"'.encode()), "RFC 8259 allows it unescaped"),
    _good("C1 control in a string", _with(b',"a":"\xc2\x85"'), "RFC 8259 allows it unescaped"),
    _good("noncharacter", _with(b',"a":"\xef\xbf\xbf\xf4\x8f\xbf\xbf"'), "UTF-8 all the same"),
    _good("mark inside a string", _with(b',"a":"\xef\xbb\xbf"'), "a mark only at the beginning", writer=None),
    _good("lone high surrogate escape", _with(rb',"a":"\ud800"'), "RFC 8259's grammar allows it", writer=None),
    _good("lone low surrogate escape", _with(rb',"a":"\udfff"'), "RFC 8259's grammar allows it", writer=None),
    _good("reversed pair", _with(rb',"a":"\udc00\ud800"'), "RFC 8259's grammar allows it", writer=None),
    _good("high surrogate, then letter", _with(rb',"a":"\ud800\u0041"'), "RFC 8259's grammar allows it", writer=None),
    _good("lone surrogate as key", _with(rb',"\ud800":1'), "RFC 8259's grammar allows it", writer=None),
    _bad("lone surrogate as type", _typed(rb"\ud800"), "a type has no lone surrogate"),
    _bad("lone low surrogate in a type", _typed(rb"a\udfff"), "a type has no lone surrogate"),
    _own("pair of surrogates as type", _typed(rb"\ud83d\ude00"), "a character"),
    _bad("empty type", _typed(b""), "1 to 255 bytes"),
    _own("type of 1 byte", _typed(b"a"), "1 to 255 bytes"),
    _own("type of a space", _typed(b" "), "1 to 255 bytes"),
    _own("type of 255 bytes", _typed(b"a" * 255), "1 to 255 bytes"),
    _bad("type of 256 bytes", _typed(b"a" * 256), "1 to 255 bytes"),
    _own("type of 255 bytes, two each", _typed("é".encode() * 127 + b"a"), "1 to 255 bytes"),
    _bad("type of 256 bytes, two each", _typed("é".encode() * 128), "1 to 255 bytes, not characters"),
    _own("type of 255 bytes, escaped", _typed(b"\\u0061" * 255), "1 to 255 bytes once it is read"),
    _bad("type of 256 bytes, escaped", _typed(b"\\u00e9" * 128), "1 to 255 bytes once it is read"),
    _bad("type of 1 MB", _typed(b"a" * 1_000_000), "1 to 255 bytes"),
    _good("lone surrogate nested", _with(rb',"a":{"b":["\ud800"]}'), "RFC 8259's grammar allows it", writer=None),
    _good("empty key", _with(b',"":1'), "a key"),
    _good("braces in a string", _with(b',"a":"' + b"{[" * 100 + b'"'), "text does not nest"),
    _good("escaped quote before braces", _with(rb',"a":"\\\"' + b"[" * 100 + rb'\\"'), "text does not nest"),
    _good("looks like two lines", _with(rb',"a":"}\n{"'), "an escape, not a newline"),
    _bad("tab in a string", _with(b',"a":"x\ty"'), "control characters must be escaped"),
    _bad("CR in a string", _with(b',"a":"x\ry"'), "control characters must be escaped"),
    _bad("NUL in a string", _with(b',"a":"\x00"'), "control characters must be escaped"),
    _bad("unit separator in a string", _with(b',"a":"\x1f"'), "control characters must be escaped"),
    _bad("control character in a key", _with(b',"a\x01":1'), "control characters must be escaped"),
    _bad("control character nested", _with(b',"a":[{"b":"\x1e"}]'), "control characters must be escaped"),
    Case("newline in a string", _with(b',"a":"x\ny"'), False, "control characters must be escaped", False, True),
    Case("newline in a key", _with(b',"x\ny":1'), False, "control characters must be escaped", False, True),
    _bad("escape x", _with(rb',"a":"\x41"'), "no escape"),
    _bad("escape quote", _with(rb""","a":"\'" """), "no escape"),
    _bad("escape U", _with(rb',"a":"\U0041"'), "no escape"),
    _bad("escape u, three digits", _with(rb',"a":"\u041"'), "no escape"),
    _bad("escape u, no hex", _with(rb',"a":"\u00g1"'), "no escape"),
    _bad("escape u, sign", _with(rb',"a":"\u+041"'), "no escape"),
    _bad("escape u, space", _with(rb',"a":"\u 041"'), "no escape"),
    _bad("escape before newline", _with(b',"a":"\\\n"'), "no escape"),
    _bad("escape ends it", _with(rb',"a":"\"'), "the string does not end"),
    _bad("bad escape in a key", _with(rb',"\q":1'), "no escape"),
    _bad("bad escape nested", _with(rb',"a":[{"b":"\q"}]'), "no escape"),
    # --- UTF-8
    _good("two bytes", _bent(query_hash="é"), "UTF-8"),
    _good("four bytes", _bent(query_hash="😀", note="漢字"), "UTF-8"),
    _bad("byte order mark", b"\xef\xbb\xbf" + BASE, "no byte order mark"),
    _bad("UTF-16", BASE.decode().encode("utf-16"), "UTF-16 is not UTF-8"),
    _bad("UTF-16 without mark", BASE.decode().encode("utf-16-le"), "UTF-16 is not UTF-8"),
    _bad("UTF-32", BASE.decode().encode("utf-32-be"), "UTF-32 is not UTF-8"),
    _bad("Latin-1 in a known field", _bent(query_hash="@").replace(b"@", b"\xe9"), "not UTF-8"),
    _bad("Latin-1 in an unnamed field", _with(b',"a":"\xe9"'), "not UTF-8, where a parser may skip it"),
    _bad("Latin-1 in a key", _with(b',"\xe9":1'), "not UTF-8, where a parser may skip it"),
    _bad("Latin-1 nested", _with(b',"a":{"b":["\xe9"]}'), "not UTF-8, where a parser may skip it"),
    _bad("lone continuation", _with(b',"a":"\x80"'), "not UTF-8"),
    _bad("cut sequence", _with(b',"a":"\xe6\xbc"'), "not UTF-8"),
    _bad("overlong slash", _with(b',"a":"\xc0\xaf"'), "not UTF-8"),
    _bad("overlong NUL", _with(b',"a":"\xc0\x80"'), "not UTF-8"),
    _bad("encoded surrogate", _with(b',"a":"\xed\xa0\x80"'), "not UTF-8"),
    _bad("beyond U+10FFFF", _with(b',"a":"\xf4\x90\x80\x80"'), "not UTF-8"),
    _bad("byte 0xff", _with(b',"a":"\xff"'), "not UTF-8"),
    # --- nesting
    _good("63 deep", nested(63), "at most 64"),
    _good("64 deep", nested(64), "at most 64"),
    _bad("65 deep", nested(65), "at most 64"),
    _good("64 deep, objects", _nested_objects(64), "at most 64"),
    _bad("65 deep, objects", _nested_objects(65), "at most 64"),
    _good("64 deep, empty object inside", nested(63).replace(b"[]", b"[{}]"), "at most 64"),
    _bad("65 deep, empty object inside", nested(64).replace(b"[]", b"[{}]"), "at most 64"),
    _bad("65 deep, mixed", _with(b',"a":' + b'[{"b":' * 32 + b"1" + b"}]" * 32), "at most 64"),
    _good("200 containers, 3 deep", _with(b',"a":[' + b",".join([b"{}"] * 200) + b"]"), "wide, not deep"),
    _good("64 deep twice", _with(b',"a":' + b"[" * 63 + b"]" * 63 + b',"b":' + b"[" * 63 + b"]" * 63), "at most 64"),
    _bad("2000 deep", nested(2000), "at most 64"),
    _bad("200000 deep", nested(200_000), "at most 64"),
    _bad("200000 openers", _with(b',"a":' + b"[" * 200_000), "at most 64, and no JSON"),
    # --- size
    _good("1 MiB - 1", sized(EVENT_LIMIT - 1), "at most 1 MiB"),
    _good("1 MiB", sized(EVENT_LIMIT), "at most 1 MiB"),
    _bad("1 MiB + 1", sized(EVENT_LIMIT + 1), "at most 1 MiB"),
    _bad("1 MiB + 1, white space", BASE + b" " * (EVENT_LIMIT + 1 - len(BASE)), "at most 1 MiB as received"),
    _bad("3 MiB", sized(3 * EVENT_LIMIT), "at most 1 MiB"),
    # --- event_type and timestamp, once each
    _bad("no event_type", _without("event_type"), "event_type is missing"),
    _bad("no timestamp", _without("timestamp"), "timestamp is missing"),
    _bad(
        "event_type only nested", _with(b',"a":{' + _E + b"}").replace(_E + b",", b"", 1), "only the top level counts"
    ),
    _bad("timestamp only nested", _with(b',"a":{' + _T + b"}").replace(_T + b",", b"", 1), "only the top level counts"),
    _bad("event_type null", _bent(event_type=None), "a string"),
    _bad("event_type number", _bent(event_type=1), "a string"),
    _bad("event_type array", _bent(event_type=["query_executed"]), "a string"),
    _bad("event_type object", _bent(event_type={"a": 1}), "a string"),
    _bad("timestamp null", _bent(timestamp=None), "a string"),
    _bad("timestamp number", _bent(timestamp=1772368496), "a string"),
    _bad("timestamp array", _bent(timestamp=[TIME]), "a string"),
    _bad("event_type twice", _with(b"," + _E), "once each"),
    _bad("event_type twice, other value", _with(b',"event_type":"auth_attempt"'), "once each"),
    _bad("event_type twice, null first", b'{"event_type":null,' + BASE[1:], "once each"),
    _bad("timestamp twice", _with(b"," + _T), "once each"),
    _bad("timestamp twice, bad first", b'{"timestamp":0,' + BASE[1:], "once each"),
    _bad("event_type twice, escaped", _with(rb',"event\u005ftype":"query_executed"'), "an escaped name is that name"),
    _bad(
        "event_type twice, all escaped", _with(b',"' + b"".join(b"\\u%04x" % b for b in b"event_type") + b'":"a"'), "so"
    ),
    _bad(
        "timestamp twice, escaped",
        _with(rb',"\u0074imestamp":"' + TIME.encode() + b'"'),
        "an escaped name is that name",
    ),
    _bad("timestamp twice, upper-case hex", _with(rb',"ti\u006Destamp":"' + TIME.encode() + b'"'), "likewise"),
    _good(
        "event_type escaped",
        BASE.replace(b"event_type", rb"event\u005ftype"),
        "an escaped name is that name",
        writer=None,
    ),
    _good(
        "timestamp escaped",
        BASE.replace(b'"timestamp"', rb'"\u0074imestamp"'),
        "an escaped name is that name",
        writer=None,
    ),
    _good(
        "type's value escaped",
        BASE.replace(b'"query_executed"', rb'"query\u005Fexecuted"'),
        "an escaped value",
        writer=None,
    ),
    _good("time's value escaped", BASE.replace(b"T12:34", rb"T12\u003a34"), "an escaped value", writer=None),
    _good("event_type nested too", _with(b',"a":{' + _E + b"," + _E + b"}"), "only the top level counts"),
    _good("timestamp nested too", _with(b',"a":[{' + _T + b'},{"timestamp":7}]'), "only the top level counts"),
    _good("event_type as a value", _with(b',"a":"event_type","b":"timestamp"'), "a value is no key"),
    _good("event_type in text", _with(rb',"a":"\"event_type\":\"x\",\"timestamp\":1"'), "text is no key"),
    _good("longer key", _with(b',"event_type_":1,"timestamps":2,"Event_Type":3'), "other keys"),
    _good("key with other escapes", _with(rb',"event_type\u0000":1,"\u0065vent":2'), "other keys", writer=None),
    _good("other key twice", _with(b',"a":1,"a":2'), "of another key the last counts", writer=None),
    _good("other key twice, nested", _with(b',"a":{"b":1,"b":2}'), "of another key the last counts", writer=None),
    _good("known key twice", _with(b',"result_rows":7'), "of another key the last counts", writer=None),
    _foreign("known key twice, last ill-typed", _with(b',"result_rows":"7"'), "the last counts, and is ill-typed"),
    # --- times
    *(
        _good(f"time {text}", at(text), reason, writer=True)
        for text, reason in {
            "2026-03-01T12:34:56Z": "no fraction",
            "2026-03-01T12:34:56.7Z": "one digit",
            "2026-03-01T12:34:56.789Z": "three digits",
            "2026-03-01T12:34:56.789012345Z": "nine digits",
            "2026-03-01T12:34:56.78901234567890123456Z": "twenty digits",
            "2026-03-01T12:34:56.999999999999Z": "nearly the next second",
            "2026-03-01T12:34:56.000000000Z": "zeros",
            "2026-03-01T12:34:56+00:00": "no offset",
            "2026-03-01T12:34:56-00:00": "RFC 3339: the local offset is unknown",
            "2026-03-01T12:34:56.5+01:00": "an offset",
            "2026-03-01T12:34:56-05:30": "an offset",
            "2026-03-01T12:34:56+23:59": "the largest offset",
            "2026-03-01T12:34:56-23:59": "the largest offset",
            "2026-03-01T00:00:00Z": "midnight",
            "2026-12-31T23:59:59.999999Z": "end of a year",
            "2024-02-29T12:00:00Z": "a leap day",
            "2000-02-29T12:00:00Z": "a leap day",
            "1970-01-01T00:00:00Z": "the first time",
            "1969-12-31T23:30:00-00:30": "1970 in UTC",
            "1969-12-31T23:30:00.5-01:00": "1970 in UTC",
            "9999-12-31T23:59:59.999999Z": "the last time",
            "9999-12-31T23:59:59.9999999999Z": "the last time",
            "9999-12-31T23:59:59.999999+00:00": "the last time",
            "9999-12-31T23:59:59+23:59": "9999 in UTC",
        }.items()
    ),
    _good("time of 4000 digits", at("2026-03-01T12:34:56." + "1" * 4000 + "Z"), "any number of digits", writer=None),
    *(
        _bad(f"time {text!r}", at(text), reason)
        for text, reason in {
            "": "no time",
            "now": "no time",
            "1772368496": "no time",
            "2026-03-01": "a date",
            "12:34:56Z": "a time of day",
            "2026-03-01T12:34Z": "no seconds",
            "2026-03-01T12:34:56": "no zone",
            "2026-03-01T12:34:56.789012": "no zone",
            "2026-03-01t12:34:56Z": "upper-case T",
            "2026-03-01T12:34:56z": "upper-case Z",
            "2026-03-01 12:34:56Z": "T, not a space",
            "2026-03-01T12:34:56+0100": "a colon in the offset",
            "2026-03-01T12:34:56+01": "minutes in the offset",
            "2026-03-01T12:34:56+1:00": "two digits",
            "2026-03-01T12:34:56+01:00:00": "no seconds in the offset",
            "2026-03-01T12:34:56+24:00": "hours 00 to 23",
            "2026-03-01T12:34:56-24:00": "hours 00 to 23",
            "2026-03-01T12:34:56+01:60": "minutes 00 to 59",
            "2026-03-01T12:34:56+99:99": "no offset",
            "2026-03-01T12:34:56\u221201:00": "a minus sign that is no hyphen",
            "2026-03-01T12:34:56Z+01:00": "two zones",
            "2026-03-01T12:34:56ZZ": "two zones",
            "2026-03-01T12:34:56 Z": "a space",
            " 2026-03-01T12:34:56Z": "a space",
            "2026-03-01T12:34:56Z ": "a space",
            "2026-03-01T12:34:56Z\n": "a newline",
            "2026-03-01T12:34:56Z\x00": "a NUL",
            "2026-03-01T12:34:56.Z": "a point and no digit",
            "2026-03-01T12:34:56,5Z": "a point, not a comma",
            "2026-03-01T12:34:56.5.5Z": "two points",
            "2026-03-01T12:34:56.-5Z": "a sign",
            "2026-03-01T12:34:60Z": "seconds 00 to 59",
            "2016-12-31T23:59:60Z": "a leap second: seconds 00 to 59",
            "2026-03-01T12:34:99Z": "seconds 00 to 59",
            "2026-03-01T12:60:56Z": "minutes 00 to 59",
            "2026-03-01T12:99:56Z": "minutes 00 to 59",
            "2026-03-01T24:00:00Z": "hours 00 to 23",
            "2026-03-01T25:34:56Z": "hours 00 to 23",
            "2026-02-30T12:34:56Z": "no such day",
            "2026-02-29T12:34:56Z": "no leap year",
            "2100-02-29T12:34:56Z": "no leap year",
            "2026-04-31T12:34:56Z": "no such day",
            "2026-03-00T12:34:56Z": "no such day",
            "2026-03-32T12:34:56Z": "no such day",
            "2026-00-01T12:34:56Z": "no such month",
            "2026-13-01T12:34:56Z": "no such month",
            "0000-01-01T00:00:00Z": "before 1970",
            "1969-12-31T23:59:59Z": "before 1970",
            "1969-12-31T23:59:59.999999999Z": "before 1970",
            "1970-01-01T00:30:00+01:00": "1969 in UTC",
            "1969-12-31T23:30:00-00:29": "1969 in UTC",
            "0001-01-01T00:00:00+23:59": "year 0 in UTC",
            "10000-01-01T00:00:00Z": "four digits",
            "10000-01-01T00:30:00+01:00": "four digits, though 9999 in UTC",
            "9999-12-31T23:59:59.999999-00:01": "10000 in UTC",
            "9999-12-31T23:30:00-01:00": "10000 in UTC",
            "-2026-03-01T12:34:56Z": "a sign",
            "+2026-03-01T12:34:56Z": "a sign",
            "26-03-01T12:34:56Z": "four digits",
            "2026-3-1T12:34:56Z": "two digits",
            "2026-W09-7T12:34:56Z": "a week date",
            "2026-060T12:34:56Z": "an ordinal date",
            "20260301T123456Z": "the basic form",
            "Sun, 01 Mar 2026 12:34:56 GMT": "RFC 5322",
            "\uff12\uff10\uff12\uff16-03-01T12:34:56Z": "digits of another script",
            "2026-03-01T12:34:5\u0666Z": "digits of another script",
            "2026-03-01T12:34:56.\u0666Z": "digits of another script",
            "2026-03-01T1²:34:56Z": "no digit",
        }.items()
    ),
]
