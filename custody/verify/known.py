"""Rule 1 of FORMAT.md, Verification: the known heads of each log, except its checkpoints in the archive."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from custody.format import layout
from custody.format.audit import SignedAudit
from custody.keys.trust import Trust
from custody.tlog.head import Head, KnownHead
from custody.verify.checkpoints import Cosigned

_COSIGNED = "a cosigned checkpoint"
_REMEMBERED = "the state file"


def known_heads(
    trust: Trust,
    remembered: Mapping[str, Head],
    cosigned: Sequence[Cosigned],
    newest: SignedAudit | None,
    logs: Iterable[layout.Log],
) -> dict[layout.Log, list[KnownHead]]:
    """Return the known heads of each log.

    Args:
        trust: has known heads, and the heads at which keys end.
        remembered: the heads in the state file.
        cosigned: the heads that witnesses signed.
        newest: the newest audit that a trusted key signed, which names heads.
        logs: logs to include, even if they have no known head.
    """
    found: dict[layout.Log, list[KnownHead]] = {}
    for name, known in _heads(trust, remembered, cosigned, newest):
        log = layout.parse_log_text(name)
        if log is not None and known.size:
            found.setdefault(log, []).append(known)
    for log in logs:
        found.setdefault(log, [])
    found.pop(layout.AUDIT_LOG, None)
    return found


def _heads(
    trust: Trust, remembered: Mapping[str, Head], cosigned: Sequence[Cosigned], newest: SignedAudit | None
) -> Iterator[tuple[str, KnownHead]]:
    for name, head in trust.heads.items():
        yield name, KnownHead(head.size, head.root, "trust.json", trusted=True)
    for key in trust.keys.values():
        for name, head in (key.until or {}).items():
            yield name, KnownHead(head.size, head.root, f"the end of the key {key.id!r}")
    for name, head in remembered.items():
        yield name, KnownHead(head.size, head.root, _REMEMBERED, trusted=True)
    for one in cosigned:
        yield one.log, KnownHead(one.head.size, one.head.root, _COSIGNED, trusted=True, evidence=one.text)
    if newest is not None:
        statement = newest.statement
        origin = f"audit {statement.sequence}"
        for name, seen in statement.heads.items():
            quoted = f'{origin}, sealed {statement.sealed_at}: "{name}":{{"size":{seen.size},"root":"{seen.root}"}}'
            yield name, KnownHead(seen.size, bytes.fromhex(seen.root), origin, evidence=quoted)


def known_audit_heads(
    trust: Trust, remembered: Mapping[str, Head], cosigned: Sequence[Cosigned]
) -> Iterator[KnownHead]:
    """Yield the known heads of the log of audits."""
    name = str(layout.AUDIT_LOG)
    heads = [("trust.json", trust.heads.get(name)), (_REMEMBERED, remembered.get(name))]
    heads += [(f"the end of the key {key.id!r}", (key.until or {}).get(name)) for key in trust.keys.values()]
    for origin, head in heads:
        if head is not None:
            yield KnownHead(head.size, head.root, origin)
    for one in cosigned:
        if one.log == name:
            yield KnownHead(one.head.size, one.head.root, _COSIGNED, evidence=one.text)
