"""A log's signed head, stored in the metadata of the consumer group's committed offset, in the two-line form.

Any Kafka client may write there, so a head without a trusted key's signature is ignored.
"""

import logging
from dataclasses import dataclass
from typing import Annotated

import msgspec
from confluent_kafka import TopicPartition as Position

from custody.errors import FormatError, KeyUnavailable
from custody.format import envelope, limits
from custody.format.envelope import Hex, Int, Signatures, Signer, Uuid
from custody.format.layout import Log
from custody.keys.trust import Trust
from custody.tlog.head import Head, KnownHead
from custody.tlog.proofs import Proofs
from custody.tlog.signatures import Place, check_file

logger = logging.getLogger(__name__)

FORM = "custody/offset/1"
"""The form of the head in a committed offset's metadata, as it is signed."""
METADATA_LIMIT = 4096
"""The broker's `offset.metadata.max.bytes`, by default."""


class _Claim(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The signed fields. They name the partition, so that no client can reuse a head for another partition."""

    archive: Uuid
    topic: str
    partition: Int
    epoch: Annotated[int, msgspec.Meta(ge=1, le=limits.INT_MAX)]
    size: Annotated[int, msgspec.Meta(ge=1, le=limits.INT_MAX)]
    root: Hex


_decoder = msgspec.json.Decoder(_Claim)


@dataclass(frozen=True, slots=True)
class CommittedHead:
    """A head from a committed offset. Its signature is not checked yet, and the offset has none."""

    log: Log
    offset: int
    head: Head
    message: bytes
    """The signed bytes."""
    signatures: Signatures


def encode_committed_head(archive: str, log: Log, head: Head, signer: Signer) -> str:
    """Return a head as metadata of a committed offset.

    Raises:
        KeyUnavailable: the key cannot sign now.
    """
    root = head.root.hex()
    claim = _Claim(
        archive=archive, topic=log.topic, partition=log.partition, epoch=log.epoch, size=head.size, root=root
    )
    return envelope.seal(envelope.encode_line(claim), FORM, [signer]).decode()


def commit_metadata(archive: str, log: Log, head: Head, signer: Signer) -> str:
    """Return the metadata for a committed offset: the signed head, or nothing if it cannot be stored."""
    try:
        metadata = encode_committed_head(archive, log, head, signer)
    except KeyUnavailable as error:
        logger.warning("%s: the head is not stored with the group's offset: %s", log, error)
        return ""
    if len(metadata) > METADATA_LIMIT:
        logger.warning("%s: the head is not stored with the group's offset: the key's id is too long", log)
        return ""
    return metadata


def parse_committed_head(committed: Position, archive: str) -> CommittedHead | None:
    """Return the head in a committed offset's metadata; None if there is none of this archive and partition."""
    topic, partition = committed.topic, committed.partition
    try:
        line, second = envelope.split_lines((committed.metadata or "").encode())
        claim = envelope.decode_strictly(_decoder, line, "the head")
        signatures = envelope.parse_signatures(second)
    except (FormatError, UnicodeError):
        return None
    if (claim.archive, claim.topic, claim.partition) != (archive, topic, partition):
        return None
    head = Head(claim.size, bytes.fromhex(claim.root))
    log = Log(topic, partition, claim.epoch)
    return CommittedHead(log, committed.offset, head, envelope.message(line, FORM), signatures)


def check_committed_head(committed: CommittedHead, trust: Trust, proofs: Proofs) -> KnownHead | None:
    """Return the head in a committed offset as a known head; None, with a warning, if no trusted key signed it.

    Args:
        committed: the head that was read.
        trust: the keys.
        proofs: the log's proofs, needed for a key that has ended.
    """
    head = committed.head
    verdict = check_file(
        committed.message,
        committed.signatures,
        trust.keys,
        wanted=("HMAC-SHA256",),
        position=Place(str(committed.log), head.size - 1),
        within=lambda end: proofs.leads_to(head.size, head.root, end),
        subject="committed offset",
    )
    if not verdict.counts:
        logger.warning(
            "%s: the head in the group's committed offset is ignored (any Kafka client may write there): %s",
            committed.log,
            verdict.reason,
            extra={"log": committed.log},
        )
        return None
    return KnownHead(head.size, head.root, "the offset that the group committed")
