"""Check `archive.json`: that it is the pinned one, that trusted keys signed it, and what it promises."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from custody.archive.trusted import check_archive_signatures
from custody.errors import CustodyError, FormatError, ObjectMissing
from custody.findings import Findings
from custody.format import archive_file, layout, limits
from custody.format.archive_file import ArchiveFile, Pin
from custody.keys.trust import Trust
from custody.store.protocol import Store, is_local

_KEY = layout.ARCHIVE
_NEAR_TRIED, _NEAR_SHOWN = 100, 3


@dataclass(frozen=True, slots=True)
class Identity:
    """The archive's identity.

    Attributes:
        id: its id, None if not known.
        file: its `archive.json`, None if it does not count.
        pin: the pin to save in the state file.
        missing: whether there is no `archive.json`. That is not reported yet.
    """

    id: str | None
    file: ArchiveFile | None
    pin: Pin | None
    missing: bool = False


def check_archive_file(store: Store, trust: Trust, remembered: Pin | None, findings: Findings) -> Identity:
    """Read `archive.json`, and compare it with what is pinned. That it is missing is reported later.

    Args:
        store: the archive.
        trust: the keys, and a pin if there is one.
        remembered: the pin in the state file, if there is one.
        findings: gets the findings.
    """
    pins = (("trust.json", trust.archive), ("the state file", remembered))
    pinned = [(origin, pin) for origin, pin in pins if pin is not None]
    # Keep the old pin, so that the alarm is repeated until it is accepted.
    known = Identity(pinned[0][1].id, None, pinned[-1][1]) if pinned else Identity(None, None, None)
    digest = None
    try:
        data = store.read(_KEY, limit=limits.ARCHIVE_FILE_BYTES)
        digest = sha256(data).hexdigest()
        file = archive_file.parse(data)
    except ObjectMissing:
        return replace(known, missing=True)
    except FormatError as error:
        message = f"archive.json does not follow FORMAT.md: {error}"
        findings.report("archive", message, tampered=True, key=_KEY, sha256=digest)
        return known
    except CustodyError as error:
        findings.report("unreadable", f"archive.json cannot be read: {error}", key=_KEY)
        return known
    if not _is_pinned(file, pinned, digest, findings):
        return known
    if _is_signed(file, trust, digest, findings, pinned=known.pin == file.pin) or pinned:
        return Identity(file.id, file, file.pin)
    return Identity(file.id, None, known.pin)


def report_missing(store: Store, findings: Findings, *, nowhere: bool) -> None:
    """Report that there is no `archive.json`.

    Args:
        store: the archive.
        findings: gets the finding.
        nowhere: whether nothing of an archive is here: the path is wrong, or all was deleted.
    """
    if not nowhere:
        findings.report("archive", "there is no archive.json here: is this the right place?", key=_KEY)
        return
    near = " or ".join(_archives_near(store))
    meant = f" Did you mean {near}?" if near else ""
    advice = "give the path of the archive's root: the folder or prefix that has archive.json"
    message = f"there is no archive here: is this the right place?{meant}"
    findings.report("archive", message, key=_KEY, advice=advice)


def _archives_near(store: Store) -> list[str]:
    """Return the URLs of archives directly below this path, or of the nearest one above a folder."""
    with suppress(CustodyError):
        inner = [name for name in store.level("")[0][:_NEAR_TRIED] if store.exists(f"{name}/{_KEY}")]
        if inner:
            return [f"{store.url.rstrip('/')}/{quote(name)}" for name in inner[:_NEAR_SHOWN]]
    if is_local(store):
        folder = Path(unquote(urlsplit(store.url).path))
        with suppress(OSError):
            return [above.as_uri() for above in folder.parents if (above / _KEY).is_file()][:1]
    return []


def _is_pinned(file: ArchiveFile, pinned: Sequence[tuple[str, Pin]], digest: str, findings: Findings) -> bool:
    """Return whether archive.json matches all pins, or the difference was accepted."""
    others = [(origin, pin) for origin, pin in pinned if pin != file.pin]
    if not others:
        return True
    origins, pin = " and ".join(origin for origin, _ in others), others[0][1]
    return findings.report(
        "archive",
        f"this archive.json is not the one that {origins} pin{'s' if len(others) == 1 else ''}",
        tampered=True,
        key=_KEY,
        expected=f"{pin.id}, SHA-256 {pin.sha256}",
        found=f"{file.id}, SHA-256 {file.pin.sha256}",
        sha256=digest,
    )


def _is_signed(file: ArchiveFile, trust: Trust, digest: str, findings: Findings, *, pinned: bool) -> bool:
    """Return whether trusted keys signed archive.json, and report what is wrong with its signatures."""
    verdict = check_archive_signatures(file, trust, pinned=pinned)
    for problem in verdict.problems:
        if problem.kind == "key-span":
            message = f"archive.json: {problem.message}; if you know that it is the right one, pin it in trust.json"
            findings.report("archive", message, key=_KEY, sha256=digest)
    elsewhere = {"key-unknown", "key-span"}
    wrong = [problem.message for problem in verdict.problems if not problem.open and problem.kind not in elsewhere]
    if wrong:
        message = f"the signatures of archive.json are not valid: {'; '.join(wrong)}"
        findings.report("archive", message, tampered=True, key=_KEY, sha256=digest)
    for problem in verdict.problems:
        # A pin is enough if the key is not known here. One valid signature is enough to know who signed.
        needless = pinned if problem.kind == "key-unknown" else verdict.counts
        if (problem.open or problem.kind == "key-unknown") and not needless:
            findings.report(problem.kind, f"archive.json: {problem.message}", key=_KEY)
    return verdict.counts


@dataclass(frozen=True, slots=True)
class Promises:
    """What `archive.json` and the verifier's trust promise about a log.

    Attributes:
        heartbeat: an idle log writes a statement this often.
        checkpoint: a log that grew gets a checkpoint this often.
        retention: how long evidence must be kept.
        kept: how long it may be kept at most, None if there is no limit.
        live: whether the archive is being written, so that silence is a finding.
    """

    heartbeat: timedelta | None = None
    checkpoint: timedelta | None = None
    retention: timedelta | None = None
    kept: timedelta | None = None
    live: bool = False


def promises_of(file: ArchiveFile | None, trust: Trust, *, live: bool) -> Promises:
    """Return what a valid `archive.json` and our trust promise. The longer retention of both applies."""
    stated = file.statement if file else None
    days = max(stated.retention_days if stated else 0, trust.retention_days or 0)
    return Promises(
        heartbeat=timedelta(seconds=stated.heartbeat) if stated else None,
        checkpoint=timedelta(seconds=stated.checkpoint) if stated else None,
        retention=timedelta(days=days) if days else None,
        kept=timedelta(days=days) if trust.retention_days else None,
        live=live,
    )
