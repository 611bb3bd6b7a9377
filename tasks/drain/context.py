"""What all logs of a run share: the archive, its keys, the broker, and the heads in the newest audit."""

import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from custody.archive.forms import AUDITS
from custody.archive.guesses import nightly_audits
from custody.archive.reader import before_garbage, find_audit_tip, read_archive
from custody.archive.trusted import Judge, require_trusted
from custody.archive.writer import writer_name
from custody.errors import ConfigurationError, FormatError
from custody.format import layout
from custody.format.archive_file import ArchiveFile
from custody.format.audit import SignedAudit
from custody.keys.signers import Signers
from custody.keys.trust import Trust
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from tasks.drain.kafka import Broker
from tasks.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Context:
    """What all logs of a run share."""

    settings: Settings
    store: Store
    archive: ArchiveFile
    signers: Signers
    trust: Trust
    broker: Broker
    cluster: str
    writer: str
    audited: Mapping[str, KnownHead]
    """Heads of logs in the newest audit that counts."""
    processes: int = 1
    """How many processes share the run's logs, and its memory."""


def open_context(settings: Settings, stack: ExitStack) -> Context:
    """Open the archive, the keys and Kafka. The stack closes them.

    Raises:
        ConfigurationError: there is no archive, or settings or keys cannot be used.
        HeadRollback: the archive is not the trusted one.
        SourceError: Kafka does not answer at all.
        StoreError: the archive's storage does not answer at all.
    """
    store = open_store(settings.archive, settings.s3)
    stack.callback(store.close)
    archive = read_archive(store)
    signers, trust = settings.signers(datetime.now(UTC)), settings.own_trust()
    signers.hmac()
    require_trusted(store, archive, trust)
    try:
        settings.life_days(archive.statement.retention_days, trust.retention_days)
    except ConfigurationError as error:
        # The roll refuses to delete; archiving goes on.
        logger.warning("%s. Until then nothing expires", error)
    if settings.drain.event_leaves and signers.leaves is None:
        logger.warning("batches get no leaves: the keys have no secret for them; `custody keys rotate` creates one")
    broker = stack.enter_context(Broker(settings.kafka.librdkafka(), settings.kafka.group))
    nights = nightly_audits(archive.statement.created, datetime.now(UTC))
    heads = read_audited_heads(store, archive.id, trust, nights)
    return Context(settings, store, archive, signers, trust, broker, broker.cluster(), writer_name(), heads)


def read_audited_heads(store: Store, archive: str, trust: Trust, nights: int = 0) -> dict[str, KnownHead]:
    """Return the heads in the newest audit that counts. Audits that do not count are skipped, with a warning.

    `nights` is a number of audits that there may be. A wrong one only costs requests.
    """
    judge = Judge(store, layout.AUDIT_LOG, AUDITS, archive, trust)

    def counts(audit: SignedAudit, at: int) -> bool:
        return judge.is_of_place(audit, at) and judge.verdict(audit, at).counts

    try:
        tip = find_audit_tip(store, counts, nights)
    except FormatError as error:
        # Garbage must not make a writer forget the heads.
        logger.warning("the newest audit cannot be used to check the logs' heads, so an older one is: %s", error)
        older = before_garbage(store, AUDITS, counts)
        return _heads(older[1], older[0]) if older else {}
    if tip.passed_over:
        logger.warning(
            "%s and later audits are not signed by trusted keys: find out who wrote them",
            layout.audit_key(tip.head.size),
        )
    if tip.newest is None:
        return {}
    return _heads(tip.newest, tip.head.size - 1)


def _heads(audit: SignedAudit, sequence: int) -> dict[str, KnownHead]:
    origin = layout.audit_key(sequence)
    return {log: KnownHead(head.size, bytes.fromhex(head.root), origin) for log, head in audit.statement.heads.items()}
