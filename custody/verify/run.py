"""The auditor: reads an archive through its store, recomputes everything, and reports findings.

This module has the order of the steps: list, read manifests, give objects to workers, add up. README.md beside it says
where each rule of FORMAT.md is checked. Memory stays bounded for any size of archive: manifests are streamed, listings
are kept in a compact form (`listing.py`), and only a few segments are read at a time. If the `Scope` is a part, heads
beyond it are not checked.

It shares with the writer only the code that reads and defines the format, none that writes an archive.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from custody.archive.known_heads import State
from custody.findings import Finding, Findings, finding
from custody.format import layout, limits
from custody.format.audit import Audit
from custody.format.manifest import Statement
from custody.keys.trust import Trust
from custody.store.protocol import Store
from custody.tlog.head import KnownHead
from custody.tlog.signatures import NOWHERE
from custody.verify.accounting import RETENTION_GRACE, LogAccount
from custody.verify.accounts import Accounts, Logs
from custody.verify.archive_file import Identity, Promises, check_archive_file, promises_of, report_missing
from custody.verify.audits import AuditLog, check_referred, referred
from custody.verify.chains import LEAST_MANIFESTS, Chain, Chains, alone, can_follow
from custody.verify.checkpoints import Checkpoints, audited_heads, known_heads
from custody.verify.expiry import Missing, grant_expiries, report_history
from custody.verify.listing import Listed, Lister, Listing, Sequences
from custody.verify.names import Names
from custody.verify.orphans import Unnamed
from custody.verify.pool import Pool
from custody.verify.protection import UNPROTECTED, Beneath, Locks, Protection, look_beneath
from custody.verify.reading import Hands, Reader, first_keys, follow, follow_audits
from custody.verify.report import LeftOut, Made, Progress, Report, summarize
from custody.verify.scope import EVERYTHING, Scope, Span
from custody.verify.work import Outcome, Sink

__all__ = ["verify"]

_IN_PROCESS_BYTES = 8 * 1_048_576
"""Archives smaller than this are read in this process: starting workers would take longer."""


def verify(  # noqa: PLR0913 - each is a choice of the auditor's, and by keyword
    store: Store,
    trust: Trust,
    *,
    now: datetime,
    state: Path | None = None,
    live: bool = False,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
    scope: Scope = EVERYTHING,
    sink: Sink | None = None,
    each: Callable[[Statement], None] | None = None,
    protection: Protection = UNPROTECTED,
    others: Iterable[Finding] = (),
    notes: Sequence[bytes] = (),
    more_heads: Sequence[tuple[str, KnownHead]] = (),
) -> Report:
    """Verify an archive.

    Args:
        store: the archive.
        trust: keys, known heads and accepted findings, from outside the archive.
        now: the time, with its zone.
        state: a file that keeps the known heads.
        live: a writer may be at work; and an archive without recent heartbeats is `stale`.
        workers: processes that read segments; 0: read them in this process. By default one per processor, and none for
            a small archive.
        progress: called now and then with the progress.
        scope: what is verified; by default everything.
        sink: gets the inflated batches; segments are then read in this process.
        each: gets each statement that is taken, in the order of its log: for whoever needs them, so that they are not
            read again. The findings say whether its signature counts.
        protection: how the bucket should protect the evidence.
        others: findings of checks outside this package. They can be accepted, and are sorted with the rest.
        notes: cosigned checkpoints of this archive's logs, from witnesses.
        more_heads: known heads, each with its log: of the archive that this one is a copy of.

    Raises:
        ConfigurationError: the state file cannot be used.
    """
    began = time.monotonic()
    state_file = State(state) if state else None
    findings = Findings(trust.accepted)
    beneath = look_beneath(store, protection, findings, scope.versions()) if scope.listing else Beneath(store)
    store = beneath.store
    identity = check_archive_file(store, trust, state_file.pin(store.url) if state_file else None, findings)
    run = _Run(trust, now, scope, findings, beneath, identity, live=live, progress=progress, each=each)
    with Names() as names, Lister(store, run.listing, names, scope) as lister:
        statements, records = lister.both()
        locks = Locks(store, protection, findings)
        pool = Pool(store, run.processes(0 if sink is not None else workers), run.take_outcome, sink, trust.leaves)
        with pool, Reader(store) as reader, locks:
            hands = Hands(reader, pool if scope.contents else None, names, locks, scope.part)
            checkpoints = Checkpoints(trust, now, run.logs, findings)
            cosigned = checkpoints.take_cosigned(notes, identity.id)
            known = known_heads(trust, state_file.heads(store.url) if state_file else {}, [*cosigned, *more_heads])
            locks.put(layout.ARCHIVE)
            signed = [*run.signed_heads(layout.AUDIT_LOG, checkpoints, hands)]
            heads = [*signed, *known.pop(layout.AUDIT_LOG, ())]
            audits = run.read_audits(heads, hands, complete=statements.complete)
            for log, head in audited_heads(audits.newest.statement) if audits.newest else ():
                known.setdefault(log, []).append(head)
            logs = {*run.listing.manifests, *known, *run.listing.with_checkpoints()} - {layout.AUDIT_LOG}
            chosen = run.choose(logs, complete=statements.complete)

            def heads_of(log: layout.Log) -> list[KnownHead]:
                return [*known.get(log, ()), *run.signed_heads(log, checkpoints, hands)]

            followed, heads_read = run.follow_apart(
                chosen,
                heads_of,
                hands,
                workers if sink is None and each is None else 0,
                complete=scope.whole and statements.complete,
            )
            all_listed = scope.listing and statements.complete

            def first_of(log: layout.Log) -> Iterable[str]:
                if log in followed or log in heads_read:
                    return ()
                listed = run.listing.manifests.get(log) or Sequences()
                return first_keys(
                    log, run.signed_sizes(log), scope.spans_of(log), listed, onward=live or not all_listed
                )

            for log in reader.logs(chosen, first_of):
                if log in followed:
                    run.accounts.add(followed.pop(log))
                    continue
                seen = heads_read.pop(log) if log in heads_read else heads_of(log)
                run.read_log(log, seen, hands, complete=all_listed)
        complete = scope.whole and statements.complete and records.result().complete
        run.take_listed(statements, records.result(), complete=complete)
        named = complete or (scope.within is not None and scope.audits and statements.complete)
        run.conclude(names if named else None, audits)
    for other in others:
        run.take_other(other)
    nothing = scope.spans is None or not run.listing.manifests
    if (
        complete
        and nothing
        and not run.nowhere
        and not any(known.values())
        and not any(account.size for account in run.accounts)
    ):
        findings.add(finding("empty", "the archive has no statement yet", key=layout.ARCHIVE))
    elif scope.part.timed and all(account.totals.outside == account.totals.statements for account in run.accounts):
        findings.add(finding("empty", f"no object was read: nothing was {scope.part}", key=layout.ARCHIVE))
    if state_file and identity.pin:
        heads_seen = {**run.accounts.heads(), **({str(layout.AUDIT_LOG): audits.head} if audits.head else {})}
        state_file.remember(store.url, identity.pin, heads_seen)
    return run.report(audits, Made.now(now, time.monotonic() - began, [*trust.keys.values()]))


def _ignore(_: Statement) -> None:
    return


@dataclass(slots=True)
class _Run:
    """The state of one verification."""

    trust: Trust
    now: datetime
    scope: Scope
    findings: Findings
    beneath: Beneath
    identity: Identity
    live: bool
    progress: Callable[[Progress], None] | None
    each: Callable[[Statement], None] | None
    archive: str | None = field(init=False)
    """The archive's id: from `archive.json`, or else from the first statement that names one."""
    logs: Logs = field(init=False)
    accounts: Accounts = field(default_factory=Accounts)
    listing: Listing = field(init=False)
    missing: Missing = field(default_factory=Missing)
    left_out: frozenset[layout.Log] = frozenset()
    """Logs that are not in the part that was asked for."""
    nowhere: bool = False
    """Whether nothing of an archive is here."""
    _events: int = 0
    _stored: int = 0

    def __post_init__(self) -> None:
        self.archive = self.identity.id
        self.logs = Logs(self.beneath.store, self.trust, self.identity.id)
        self.listing = Listing(weighed=self.scope.contents)

    def take_listed(self, *listings: Listed, complete: bool) -> None:
        """Report the findings of the listings, and whether there is an archive at all.

        Args:
            listings: of the statements, and of all else.
            complete: whether everything was listed.
        """
        self.nowhere = complete and self.identity.missing and self.listing.nowhere
        if self.identity.missing:
            report_missing(self.beneath.store, self.findings, nowhere=self.nowhere)
        if self.nowhere:
            # Nothing here is foreign to an archive: there is none. Nobody should be told to move it away.
            return
        for listed in listings:
            listed.report(self.findings)

    def choose(self, logs: Collection[layout.Log], *, complete: bool) -> Sequence[layout.Log]:
        """Return the logs that are verified, in order.

        Args:
            logs: the archive's logs.
            complete: whether all of its statements were listed.

        Raises:
            ConfigurationError: the archive has no log of a name that was asked for.
        """
        if self.scope.spans is not None:
            return sorted(self.scope.spans)
        chosen = self.scope.part.choose(logs, complete=complete and self.identity.file is not None)
        self.left_out = frozenset(logs) - frozenset(chosen)
        return sorted(chosen)

    def processes(self, workers: int | None) -> int:
        """Return how many processes read objects."""
        most = workers if workers is not None else max(os.cpu_count() or 1, 2)
        small = self.scope.listing and self.listing.stored <= _IN_PROCESS_BYTES
        return most if self.scope.contents and (workers is not None or not small) else 0

    def signed_heads(self, log: layout.Log, checkpoints: Checkpoints, hands: Hands) -> Iterator[KnownHead]:
        """Return the heads that a log's checkpoints in the archive sign, if they are in scope."""
        answers = hands.reader.objects(partial(layout.checkpoint_key, log), self.signed_sizes(log), limits.NOTE_BYTES)
        return checkpoints.heads(log, answers, self.archive, hands.locks)

    def signed_sizes(self, log: layout.Log) -> Iterator[int]:
        """Yield the sizes of a log's checkpoints that were listed and are in scope."""
        listed = self.listing.checkpoints.get(log)
        spans = (Span(),) if log == layout.AUDIT_LOG else self.scope.spans_of(log)
        for size in listed.all() if listed else ():
            if any(span.first <= size <= (span.end or size) for span in spans):
                yield size

    def read_audits(self, known: Sequence[KnownHead], hands: Hands, *, complete: bool) -> AuditLog:
        """Read the log of audits, and check the objects that audits refer to.

        Args:
            known: its known heads.
            hands: reads the audits.
            complete: whether all of them were listed.
        """
        listed = self.listing.audits
        if not complete:
            listed = listed.filled(max((head.size for head in known), default=0))
        following = partial(hands.reader.following, layout.audit_key, listed)
        within = self.logs.judge(layout.AUDIT_LOG).proofs.leads_to
        audits = AuditLog(self.archive, self.trust.keys, self.findings, known, following, within)
        if self.scope.audits:
            follow_audits(audits, listed, hands.reader, hands.locks, partial(self._check_audit, hands))
        return audits

    def _check_audit(self, hands: Hands, audit: Audit) -> None:
        for ref in referred(self.logs.store, audit):
            hands.names.name(ref.key)
            hands.locks.put(ref.key)
            if changed := check_referred(self.logs.store, audit, ref, contents=self.scope.contents):
                self.findings.add(changed)

    def follow_apart(
        self,
        chosen: Sequence[layout.Log],
        heads_of: Callable[[layout.Log], Sequence[KnownHead]],
        hands: Hands,
        workers: int | None,
        *,
        complete: bool,
    ) -> tuple[dict[layout.Log, LogAccount], dict[layout.Log, Sequence[KnownHead]]]:
        """Verify the logs' chains in worker processes, if no object is read, and if there is enough for two of them.

        Args:
            chosen: the logs.
            heads_of: returns a log's known heads, once.
            hands: gets what the statements name.
            workers: how many processes; None for one per processor.
            complete: whether everything was listed.

        Returns:
            The accounts of logs that are verified now, and the known heads that were read of logs that are not.
        """
        accounts: dict[layout.Log, LogAccount] = {}
        read: dict[layout.Log, Sequence[KnownHead]] = {}
        most = workers if workers is not None else os.cpu_count() or 1
        logs = [log for log in alone(chosen) if log in self.listing.manifests]
        archive, small = self.archive, sum(self.listing.manifests[log].count for log in logs) < LEAST_MANIFESTS
        apart = complete and archive is not None and not self.scope.contents and not hands.locks.active
        if not apart or archive is None or small or min(most, len(logs)) < 2 or not can_follow(self.trust):
            return accounts, read
        chains = (Chain(log, heads_of(log), self.listing.manifests[log], self._promises, self.live) for log in logs)
        with Chains(hands.reader.store, self.trust, archive, self.now, self.scope.part, hands.names) as processes:
            for chain, followed in processes.follow(chains, min(most, len(logs))):
                if followed is None:
                    read[chain.log] = chain.heads
                    continue
                self.findings.take(followed.findings)
                account = accounts[chain.log] = self._account(chain.log, Span(), chain.heads, None)
                account.adopt(followed.results)
        return accounts, read

    @property
    def _promises(self) -> Promises:
        return promises_of(self.identity.file, self.trust, live=self.live)

    def _account(
        self,
        log: layout.Log,
        span: Span,
        heads: Sequence[KnownHead],
        following: Callable[[int], Iterator[tuple[int, bytes]]] | None,
    ) -> LogAccount:
        """Return the account of a log's next span. `following` returns its manifests from a sequence on."""
        account = LogAccount(
            log,
            self.archive,
            self.trust.keys,
            self.now,
            self.findings,
            heads,
            self.accounts.earlier(log) if self._sees_epochs(log) else None,
            self._promises,
            span.first,
            following or (lambda _: iter(())),
            self.logs.judge(log).proofs.leads_to,
            self.scope.part,
            self.each or _ignore,
        )
        account.granted += [(0, end) for end in [self.scope.expired.get(log, 0)] if end]
        return account

    def read_log(self, log: layout.Log, heads: Sequence[KnownHead], hands: Hands, *, complete: bool) -> None:
        """Read a log's statements, span by span.

        Args:
            log: the log.
            heads: its known heads.
            hands: reads the statements, and gets what they name.
            complete: whether all of its statements were listed.
        """
        listed = self.listing.manifests.get(log)
        # A part that is listed ends with its span. What passes over the slots at its end is behind it.
        ahead = listed if self.scope.within is None else None
        following = partial(hands.reader.following, partial(layout.manifest_key, log), ahead)
        listed = listed or Sequences() if self.scope.listing else None
        if listed is not None and not complete:
            # If the listing is incomplete, there may be more.
            listed = listed.filled(max((head.size for head in heads), default=0))
        for span in self.scope.spans_of(log):
            account = self._account(log, span, heads, following)
            self.accounts.add(account)
            follow(account, span, listed, hands, onward=span.end is None and (self.live or not complete))
            self.archive = self.archive or account.archive

    def take_outcome(self, outcome: Outcome) -> None:
        """Add the outcome of checking a statement's objects."""
        work = outcome.work
        for problem in outcome.findings:
            # Many objects in an archive storage class are one finding.
            self.findings.add(problem, group="deferred" if problem.finding == "deferred" else None)
        for key in outcome.missing:
            self.missing.add(work, key)
        # Objects under a delete marker are not kept on purpose. Unreadable objects may not exist.
        unread = {problem.key for problem in outcome.findings if problem.finding == "unreadable"}
        kept = {ref.key for ref in (work.segment, work.quarantine) if ref} - {*outcome.missing, *unread}
        if work.overdue and kept - self.beneath.touched:
            message = f"objects still exist {RETENTION_GRACE.days} days after their retention ended"
            self.findings.report("retention", message, group="kept", log=work.log, sequence=work.sequence)
        totals = self.accounts.of_work(work).totals
        totals.events += outcome.events
        totals.stored += outcome.stored
        totals.inflated += outcome.inflated
        self._events += outcome.events
        self._stored += outcome.stored
        if self.progress:
            self.progress(Progress(self._events, self._stored, self.listing.stored))

    def conclude(self, names: Names | None, audits: AuditLog) -> None:
        """Run the checks that need all logs.

        Args:
            names: the listed and the named objects; None if they are not complete.
            audits: the log of audits.
        """
        for account in self.accounts:
            grant_expiries(account, self.logs, self.now, self.findings)
        self.missing.report(self.accounts, self.findings)
        report_history(self.beneath.history, self.accounts.granted, self.logs, self.findings, self._is_left_out)
        if names is not None:
            unnamed = Unnamed(self.logs, self.accounts, self.findings, self._is_unread, self.live)
            # If an audit cannot be read, the objects that it refers to are not known.
            prefixes = (layout.AUDIT_OBJECTS,) if audits.signed.sound else ()
            unnamed.report(names, (*(layout.RECORDS if self.scope.whole else ()), *prefixes))

    def take_other(self, other: Finding) -> None:
        """Report a finding of a check outside this package, unless it is about a log that was left out."""
        log = layout.parse_log_text(other.log) if other.log else None
        if log is None or not self._is_left_out(log):
            self.findings.add(other)

    def _is_left_out(self, log: layout.Log) -> bool:
        """Return whether a user chose other logs than this one. The audits are part of any choice."""
        return bool(self.scope.part.logs) and log != layout.AUDIT_LOG and not self.accounts.of(log)

    def _sees_epochs(self, log: layout.Log) -> bool:
        """Return whether the earlier epochs of a log's partition are verified too, if there are any."""

        def is_earlier(other: layout.Log) -> bool:
            return (other.topic, other.partition) == (log.topic, log.partition) and other.epoch < log.epoch

        if self.scope.spans is not None:
            return log.epoch == 1 or any(map(is_earlier, self.scope.spans))
        return not any(map(is_earlier, self.left_out))

    def _is_unread(self, log: layout.Log) -> bool:
        """Return whether a log may have statements, but was not verified because it is out of scope."""
        return self._is_left_out(log) or (self.scope.spans is not None and log in self.listing.manifests)

    def report(self, audits: AuditLog, made: Made) -> Report:
        """Return the result."""
        unread = [listed.count for log, listed in self.listing.manifests.items() if log in self.left_out]
        summaries = [summarize(of) for of in self.accounts.by_log.values() if any(account.size for account in of)]
        return Report(
            self.logs.store.url,
            self.archive,
            self.findings.sorted(),
            summaries,
            self.findings.exit_code,
            dict(self.findings.dropped),
            self.scope,
            made,
            LeftOut(len(self.left_out), sum(unread)),
            self.identity.file.pin if self.identity.file else None,
            NOWHERE if audits.signed.sound and not audits.signed.size else audits.head,
        )
