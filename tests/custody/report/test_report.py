"""The integrity report: what it says, that it can be read by everyone, and that it grows with the period alone."""

import base64
import re
import time
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given
from hypothesis import strategies as st

from custody.archive import reader
from custody.archive.audit_findings import StatedFinding
from custody.archive.reader import Tip
from custody.archive.rows import Row
from custody.archive.trusted import find_trusted_audits, read_trusted_archive
from custody.archive.writer import append_audit
from custody.errors import CustodyError
from custody.findings import CATALOGUE, Accepted, Findings, Severity, finding
from custody.format import layout
from custody.format.audit import Covered, SignedAudit
from custody.format.envelope import HeadRef
from custody.format.layout import Log
from custody.format.manifest import Manifest
from custody.keys.open import open_public
from custody.keys.trust import Trust, open_trust
from custody.keys.trust_file import encode
from custody.report import charts
from custody.report.facts import Facts
from custody.report.figures import OTHER, Figures, State, sum_by_hour
from custody.report.page import VERDICTS, render
from custody.report.spans import LastRead, contains, merge, subtract
from custody.store.open import open_store
from custody.store.protocol import Store
from custody.tlog.checkpoint import COSIGNATURE, NoteKey, NoteSignature, cosigned, parse_note, with_signature
from tasks.audit.conclude import conclude
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.settings import AuditSettings, Settings, SourceSettings
from tests.helpers.emitted import SOURCE, emitted, life
from tests.helpers.reporting import HOSTILE, NOW, Elements, audited, gathered, settings_of
from tests.helpers.sample import Growing, Sample, audit_of, make_archive


def signed(settings: Settings, **fields: Any) -> None:
    """Sign an audit that says what is given."""
    with closing(open_store(settings.archive)) as store:
        trust, now = settings.own_trust(), datetime.now(UTC)
        archive = read_trusted_archive(store, trust).id
        tip = find_trusted_audits(store, archive, trust)
        fields["counts"] = {"findings": 0, **fields.get("counts", {})}

        def make(tip: Tip[SignedAudit]) -> Any:
            return audit_of(archive, tip, now, **fields)

        append_audit(store, tip, make, settings.signers(now).both(), trust)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_archive(tmp_path)


@pytest.fixture
def settings(sample: Sample) -> Settings:
    return settings_of(sample.folder, sample.keyring)


def damage(folder: Path, suffix: str = "*.gz") -> str:
    """Flip a bit in an object, and return its key."""
    path = next((folder / "events").rglob(suffix))
    data = bytearray(path.read_bytes())
    data[50] ^= 1
    path.unlink()
    path.write_bytes(bytes(data))
    return str(path.relative_to(folder))


def test_the_head_says_what_the_page_is_of(settings: Settings) -> None:
    """Archive, id, period, time, version, audit with its SHA-256, keys, and when all is read again are on the page."""
    outcome = audited(settings)
    facts = gathered(settings, since=datetime(2020, 1, 1, tzinfo=UTC), reread_days=30)
    page = Elements(render(facts))
    assert outcome.verdict == "verified"
    path = Path(settings.archive, "audits/000000000000.json")
    for words in (
        facts.url,
        facts.archive,
        "from 2020-01-01 00:00:00 UTC",
        "2026-11-28 12:00:00 UTC by custody ",
        sha256(path.read_bytes()).hexdigest(),
        *settings.own_trust().keys,
        "within 30 days",
        "does and does not prove",
    ):
        assert words in page.text, words
    assert page.banner == "good"
    assert not re.search(r"\d\d:\d\d:\d\d\.\d", page.text)


@pytest.mark.parametrize("verdict", ["verified", "notices", "policy", "incomplete", "unverifiable", "tampered"])
def test_the_banner_has_the_colour_of_the_verdict(settings: Settings, verdict: str) -> None:
    """Only an audit without a fault is green. Each verdict has a sign and words: nobody needs the colour."""
    signed(settings, verdict=verdict)
    page = Elements(render(gathered(settings)))
    severity = {"verified": None, "notices": Severity.NOTICE}.get(verdict, getattr(Severity, verdict.upper(), None))
    colour, sign, words, _ = VERDICTS[severity]
    assert page.banner == colour
    assert f"{sign} {words}" in page.text
    assert (colour == "good") == (verdict in {"verified", "notices"})


def test_no_verdict_is_green_without_keys(settings: Settings) -> None:
    """Where no key is at hand, anybody may have written the audit: the page is `unverified`, in no green."""
    audited(settings)
    page = Elements(render(gathered(settings, Trust())))
    assert page.banner == "unknown"
    assert "UNVERIFIED" in page.text
    assert not [each for each in page.named("span") if each.get("class") == "tag good"]


def test_public_keys_are_enough(settings: Settings, tmp_path: Path) -> None:
    """An auditor without secrets gets the verdict: public keys check the audit, and the checkpoint of its statements.

    Without the checkpoint, the page says how many statements nothing shows, as `custody query` does.
    """
    audited(settings)
    (tmp_path / "trust.json").write_bytes(encode(None, open_public(settings.keys)))
    trust = open_trust([], tmp_path / "trust.json")
    page = Elements(render(gathered(settings, trust)))
    assert page.banner == "good"
    assert "Seen while this page was made" not in page.text
    for path in Path(settings.archive, "checkpoints/audit.events/0").iterdir():
        path.unlink()
    page = Elements(render(gathered(settings, trust)))
    words = "audit.events/0: 4 signatures could not be checked with the keys at hand, and no trusted checkpoint covers"
    assert words in page.text
    assert page.text.count("could not be checked") == 1


def test_findings_are_whole(settings: Settings, sample: Sample) -> None:
    """Each finding has its class, its object's key, its message, what to do, and where to read more."""
    key = damage(sample.folder)
    outcome = audited(settings)
    page = Elements(render(gathered(settings)))
    assert outcome.verdict == "tampered"
    assert page.banner == "bad"
    assert len(page.named("article")) == len(outcome.findings)
    for each in outcome.findings:
        for name in ("finding", "severity", "message", "action", "expected", "found", "sha256"):
            assert str(each.get(name, "")) in page.text
        assert f"custody explain {each['finding']}" in page.text
    assert key in page.text
    (hashed,) = [each for each in outcome.findings if each["finding"] == "segment-hash"]
    assert hashed["sha256"] == hashed["found"]
    # The digest stands once in the finding's card, not again as another row.
    assert page.text.count(str(hashed["found"])) == 1


def test_what_is_bad_comes_first(settings: Settings, sample: Sample) -> None:
    """Findings follow the head at once if they are more than notices. Otherwise what the page proves comes first."""

    def headings() -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", render(gathered(settings)).decode())

    audited(settings)
    good = headings()
    damage(sample.folder)
    audited(settings, full=True)
    bad = headings()
    assert good[0].startswith("What this does")
    assert bad[0] == "Findings"
    assert sorted(good) == sorted(bad)


def test_a_damaged_log_is_in_the_table(tmp_path: Path) -> None:
    """A log whose statements are gone, or that lacks one, has its row and its own verdict."""
    growing, gone, holed = (Growing(tmp_path, partition) for partition in range(3))
    for each in (growing, gone, holed):
        each.append(4)
    settings = settings_of(growing.folder, growing.keyring)
    audited(settings)
    for path in (growing.folder / "manifests/audit.grows/1").iterdir():
        path.unlink()
    (growing.folder / "manifests/audit.grows/2/000000000002.json").unlink()
    for again in (False, True):
        if again:
            audited(settings, full=True)
        facts = gathered(settings)
        page = Elements(render(facts))
        assert [log.name for log in facts.logs] == [f"audit.grows/{partition}" for partition in range(3)]
        assert page.banner == "bad"
        assert (facts.logs[1].verified, facts.logs[1].damaged) == (0, 4)
        verdicts = re.findall(r"audit\.grows/(\d) ([✓✗?▲]) ([a-z ]+?) \d", page.text)
        assert [(log, sign) for log, sign, _ in verdicts][:3] == [("0", "✓"), ("1", "✗"), ("2", "✗")], verdicts


def test_a_finding_stays_open_until_its_statement_is_read_again(settings: Settings, sample: Sample) -> None:
    """An audit that did not look at the damage again does not turn the page green. One that did, does."""
    name = str(sample.log)
    heads = {name: HeadRef(sample.tip.head.size, sample.tip.head.root.hex())}
    bad = finding("segment-hash", "one bit is wrong", log=name, sequence=2, key="events/x").to_dict()
    signed(settings, heads=heads, covered={name: [Covered(0, 4, "new")]}, findings=[bad], verdict="tampered")
    signed(settings, heads=heads, covered={name: [Covered(0, 1, "again")]})
    facts = gathered(settings)
    page = Elements(render(facts))
    assert facts.statement.verdict == "verified"
    assert page.banner == "bad"
    assert "TAMPERED" in page.text
    assert "No later audit has read this again" in page.text
    assert (facts.logs[0].verified, facts.logs[0].damaged) == (3, 1)
    signed(settings, heads=heads, covered={name: [Covered(2, 3, "again")]})
    facts = gathered(settings)
    assert (facts.severity, facts.audits.open) == (None, [])
    assert Elements(render(facts)).banner == "good"


def test_a_foreign_object_stays_open_while_it_is_there(settings: Settings, sample: Sample) -> None:
    """Listings are read by shares too. What was found stays open until it is gone, or accepted by its digest."""
    path = sample.folder / "events/foreign"
    path.write_text("x")
    bad = finding("unlisted", "nobody wrote it", key="events/foreign", sha256="a" * 64).to_dict()
    signed(settings, findings=[bad], verdict="tampered")
    signed(settings, findings=[bad], verdict="tampered")
    signed(settings)
    facts = gathered(settings)
    assert [audit for audit, _ in facts.audits.open] == [1]
    assert Elements(render(facts)).banner == "bad"
    for digest, colour in (("a" * 64, "good"), ("b" * 64, "bad")):
        accepted = Accepted(finding="unlisted", reason="known", by="me", at="now", key="events/foreign", sha256=digest)
        trust = replace(settings.own_trust(), accepted=(accepted,))
        assert Elements(render(gathered(settings, trust))).banner == colour
    path.unlink()
    assert Elements(render(gathered(settings))).banner == "good"


@pytest.mark.parametrize(("accepted", "left"), [((1,), 1), ((1, 2, 3), 0)])
def test_a_range_is_accepted_by_all_of_its_statements(
    settings: Settings, sample: Sample, accepted: tuple[int, ...], left: int
) -> None:
    """The report accepts what the verifier accepts: whoever accepts the first statement accepts no others."""
    name = str(sample.log)
    gone = finding("segment-missing", "gone", log=name, sequence=1, through=3, count=3)
    signed(settings, covered={name: [Covered(0, 4, "new")]}, findings=[gone.to_dict()], verdict="incomplete")
    signed(settings)
    by = tuple(
        Accepted(finding="segment-missing", reason="known", by="me", at="now", log=name, sequence=sequence)
        for sequence in accepted
    )
    facts = gathered(settings, replace(settings.own_trust(), accepted=by))
    assert len(facts.audits.open) == left
    assert (Findings(by).add(gone), facts.severity is None) == (not left, not left)


@pytest.mark.parametrize("of", ["a segment", "a manifest", "a checkpoint", "archive.json"])
def test_evidence_that_is_gone_closes_nothing(settings: Settings, sample: Sample, of: str) -> None:
    """Who deletes the rest of an object does not turn the page green. An audit that reads its statements again does."""
    name = str(sample.log)
    size = sample.tip.head.size
    segment = next(path for path in (sample.folder / "events").rglob("*.gz"))
    key = {
        "a segment": str(segment.relative_to(sample.folder)),
        "a manifest": layout.manifest_key(sample.log, 2),
        "a checkpoint": layout.checkpoint_key(sample.log, 3),
        "archive.json": "archive.json",
    }[of]
    heads = {name: HeadRef(size, sample.tip.head.root.hex())}
    bad = finding("delete-marker", "a delete marker hides the object", key=key, sha256="a" * 64).to_dict()
    signed(settings, heads=heads, covered={name: [Covered(0, size, "new")]}, findings=[bad], verdict="tampered")
    signed(settings, heads=heads)
    if of == "a segment":
        segment.unlink()
    facts = gathered(settings)
    assert [audit for audit, _ in facts.audits.open] == [0]
    assert Elements(render(facts)).banner == "bad"
    signed(settings, heads=heads, covered={name: [Covered(0 if of == "a segment" else 2, size, "again")]})
    assert len(gathered(settings).audits.open) == (of == "archive.json")


def test_a_rollback_is_open_until_an_audit_gets_beyond_it(settings: Settings, sample: Sample) -> None:
    """Its statement is the one after the log's end: what an audit covers ends before it."""
    name, size = str(sample.log), sample.tip.head.size
    heads = {name: HeadRef(size, sample.tip.head.root.hex())}
    bad = finding("head-rollback", "statements are gone", log=name, sequence=size, sha256="a" * 64).to_dict()
    signed(settings, heads=heads, covered={name: [Covered(0, size, "new")]}, findings=[bad], verdict="tampered")
    signed(settings, heads=heads, covered={name: [Covered(0, size, "again")]})
    assert [audit for audit, _ in gathered(settings).audits.open] == [0]
    signed(settings, heads=heads, covered={name: [Covered(size, size + 1, "new")]})
    assert gathered(settings).audits.open == []


@pytest.mark.parametrize(
    "odd",
    [
        {"key": ["a"]},
        {"finding": ["x"]},
        {"through": [2]},
        {"evidence": 5},
        {"evidence": [5]},
        {"sequence": -1},
        {"sequence": True},
        {"count": "many"},
        {"severity": {}},
        {"log": 7},
    ],
    ids=str,
)
def test_what_is_no_finding_is_a_problem(settings: Settings, sample: Sample, odd: dict[str, Any]) -> None:
    """An audit may say anything where no key checks it. What is no finding is counted, and the others are shown."""
    name = str(sample.log)
    good = finding("segment-hash", "one bit is wrong", log=name, sequence=2, key="events/x").to_dict()
    spans = {name: [Covered(0, 4, "new")]}
    for _ in range(2):
        signed(settings, covered=spans, findings=[{**good, **odd}, good], verdict="tampered")
    for trust in (None, Trust()):
        facts = gathered(settings, trust)
        assert [each.key for each in facts.audits.findings] == ["events/x"]
        assert "1 of 2 findings of audit 1 is not well formed" in Elements(render(facts)).text


@pytest.mark.parametrize(("seconds", "shown"), [(-60, True), (86_400, False), (10**12, False), (2**63, False)])
def test_a_cosignature_of_the_future_does_not_count(
    settings: Settings, sample: Sample, seconds: int, shown: bool
) -> None:
    """A time that has not come, or that is in milliseconds, is nobody's cosignature: the page is made without it."""
    audited(settings)
    private = Ed25519PrivateKey.generate()
    witness = NoteKey("a-witness", private.public_key().public_bytes_raw(), COSIGNATURE)
    path = max((sample.folder / layout.checkpoint_prefix(sample.log)).iterdir())
    note = parse_note(path.read_bytes())
    time = int(NOW.timestamp()) + seconds
    value = time.to_bytes(8, "big") + private.sign(cosigned(note.text, time))
    path.chmod(0o644)
    path.write_bytes(with_signature(note, NoteSignature(witness.name, witness.key_hash, value)).encode())
    facts = gathered(settings, replace(settings.own_trust(), witnesses=(witness,)))
    assert facts.logs[0].checkpoint is not None
    assert facts.logs[0].checkpoint.witnessed == (((witness.name, time),) if shown else ())
    assert ("2026-11-28 11:59:00 UTC" in Elements(render(facts)).text) == shown


def test_an_audit_of_a_part_says_so(tmp_path: Path) -> None:
    """The page names how many logs the audit read nothing of."""
    for partition in range(2):
        Growing(tmp_path, partition).append(2)
    settings = settings_of(tmp_path / "archive", tmp_path / "keyring.json")
    audited(settings)
    plan = plan_audit(settings, Request(logs=("audit.grows/1",)), datetime.now(UTC))
    conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces)))
    page = Elements(render(gathered(settings)))
    assert "This audit read nothing of 1 of 2 logs" in page.text


def test_an_audit_that_does_not_count_gives_no_verdict(settings: Settings, sample: Sample) -> None:
    """A forged audit is named, the page shows the newest one that keys signed, and it is not green."""
    audited(settings)
    first = sample.folder / "audits/000000000000.json"
    forged = first.read_bytes().replace(b'"sequence":0', b'"sequence":1').replace(b'"verified"', b'"notices"')
    first.with_name("000000000001.json").write_bytes(forged)
    facts = gathered(settings)
    page = Elements(render(facts))
    assert facts.statement.sequence == 0
    assert "audits/000000000001.json does not count" in page.text
    assert page.banner == "unknown"


def test_without_an_audit_it_says_to_run_one(settings: Settings) -> None:
    """An archive that was never audited has no report, and the error says what to do."""
    with pytest.raises(CustodyError, match="run `custody audit` first"):
        gathered(settings)


def test_foreign_text_is_text(settings: Settings, sample: Sample) -> None:
    """Names and messages with HTML and control characters are shown, and change nothing of the page."""
    name = str(sample.log)
    bad = [
        {**finding("foreign", HOSTILE, key=HOSTILE).to_dict(), "evidence": [HOSTILE]},
        {**finding("statement", HOSTILE, log=HOSTILE, sequence=1).to_dict(), "action": HOSTILE, "finding": HOSTILE},
    ]
    signed(settings, findings=bad, writer=HOSTILE, verdict="tampered", covered={name: [Covered(0, 1, "new")]})
    accepted = Accepted(finding=HOSTILE, reason=HOSTILE, by=HOSTILE, at=HOSTILE, key=HOSTILE)
    facts = gathered(settings)
    facts.reader = replace(facts.reader, accepted=(accepted,))
    facts.figures.types[HOSTILE] = 7
    page = render(facts)
    elements = Elements(page)
    assert b"\x1b" not in page
    assert not [each for each in elements.named("img") if (each["src"] or "") == "x"]
    assert not [each for _, each in elements.elements if "onerror" in each]
    assert elements.text.count("onerror=alert(1)>\\x1b[2J'\"&") >= 9


def test_it_needs_nothing_but_itself(tmp_path: Path) -> None:
    """No script, no address that a browser fetches, and each image has a text; images neither."""
    growing = Growing(tmp_path, begun=NOW - timedelta(days=9))
    growing.heartbeat(NOW - timedelta(days=8))
    growing.append(3)
    growing.heartbeat(NOW)
    settings = settings_of(growing.folder, growing.keyring)
    audited(settings)
    page = render(gathered(settings))
    elements = Elements(page)
    images = elements.named("img")
    assert len(images) == 4
    for each in images:
        head, _, content = (each["src"] or "").partition(",")
        assert head == "data:image/svg+xml;base64"
        svg = base64.b64decode(content).decode()
        assert not re.findall(r"""(?:href|src)=["'](?!#)|url\((?!#)|<script|<!DOCTYPE""", svg)
        assert len(each["alt"] or "") > 40
    assert {name for name, _ in elements.elements} & {"script", "link", "iframe", "object", "embed", "form"} == set()
    for _, attributes in elements.elements:
        assert not {"href", "onclick", "onload", "srcset", "action"} & attributes.keys()
    style = page.decode().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "@page" in style
    assert not {"NaN", "nan", "NaT"} & set(re.findall(r"\w+", elements.text))
    assert not re.search(r"None(?!: the|\. ✓)", elements.text)


def test_sources_are_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each source has a row with what it lacks, the worst first, and few rows are shown of many."""
    growing = Growing(tmp_path)
    lines = [line for at, line in enumerate(life(12)) if at != 4]
    lines += [emitted(1, HOSTILE), *(emitted(1, f"shop/web-{at}/1-1") for at in range(5))]
    growing.append(1, lines.__getitem__, each=len(lines))
    settings = settings_of(growing.folder, growing.keyring, report=False)
    audited(settings)
    facts = gathered(settings)
    assert facts.sources is not None
    assert [(source.name, source.missing) for source in facts.sources[:1]] == [(SOURCE, 1)]
    page = render(facts)
    text = Elements(page).text
    assert re.search(rf"{re.escape(SOURCE)} 11 1 0 20\S+Z 20\S+Z", text)
    assert b"<img src=x" not in page
    monkeypatch.setattr("custody.report.page.SOURCES_SHOWN", 3)
    text = Elements(render(facts)).text
    assert "These are 3 of 7 sources" in text
    assert "shop/web-4" not in text


def test_what_is_said_of_sources_when_nothing_is_known(settings: Settings, sample: Sample) -> None:
    """Without sources there is a sentence. If what the audit knew is gone, the page is made all the same."""
    audited(settings)
    assert "No event has a number of its source" in Elements(render(gathered(settings))).text
    (path,) = (sample.folder / "reports/sources").iterdir()
    path.unlink()
    facts = gathered(settings)
    assert "This audit says nothing of sources" in Elements(render(facts)).text
    assert [problem.severity for problem in facts.problems] == [Severity.NOTICE]


def test_a_gap_that_was_closed_is_not_open(tmp_path: Path) -> None:
    """A gap of an earlier audit is not open after an audit of the whole archive that does not name it."""
    growing = Growing(tmp_path)
    settings = Settings(
        archive=str(growing.folder),
        keys=f"file:{growing.keyring}",
        sources=SourceSettings(expected=["shop"], settle=0),
        audit=AuditSettings(report=False, piece_statements=1),
    )
    # More statements than the next audit reads again.
    growing.append(5, lambda offset: emitted(offset + 1), each=1)
    growing.append(1, lambda _: emitted(7), each=1)
    assert audited(settings).verdict == "incomplete"
    growing.append(1, lambda _: emitted(6), each=1)
    assert audited(settings).verdict == "verified"
    assert gathered(settings).audits.open == []


def test_empty_states_are_sentences(settings: Settings) -> None:
    """Where nothing is, a sentence says so: no empty table."""
    audited(settings)
    page = Elements(render(gathered(settings, since=NOW + timedelta(days=900))))
    for words in (
        "None. ✓ Audit 0 found nothing in what it read.",
        "accepts no finding",
        "No witness is trusted here",
        "No statement was sealed in this period.",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("days", "unit", "most"), [(1, "hour", 25), (40, "day", 41), (400, "month", 15), (2_555, "month", 86)]
)
def test_any_period_has_few_rows_and_readable_dates(days: int, unit: str, most: int) -> None:
    """A day is by hours, seven years by months: never a row for each of 2,555 days. No two labels are the same."""
    figures = figures_of(days)
    buckets = figures.buckets()
    assert figures.unit == unit
    assert len(buckets) <= most
    assert sum(bucket.tally.events for bucket in buckets) == figures.total.events
    for chart in charts.draw(buckets, figures.unit):
        svg = base64.b64decode(chart.source.partition(",")[2]).decode()
        labels = [label for label in re.findall(r">([^<>]+)</text>", svg) if re.search(r"\d", label)]
        dates = [label for label in labels if re.search(r"[A-Z][a-z]{2}|:", label) or re.fullmatch(r"20\d\d", label)]
        assert 3 <= len(dates) <= 10, labels
        # An hour of the day comes again the next day.
        days_shown = [label for label in dates if ":" not in label]
        assert len(set(days_shown)) == len(days_shown)
        # What is read aloud is no finer than the bars.
        length = {"hour": len("2026-11-28 12:00"), "day": len("2026-11-28"), "month": len("2026-11")}[unit]
        assert {len(date) for date in re.findall(r"20\d\d-[\d-]+(?: \d\d:\d\d)?", chart.text)} == {length}
    again = [chart.source for chart in charts.draw(buckets, figures.unit)]
    assert again == [chart.source for chart in charts.draw(buckets, figures.unit)]


def row(sealed_at: datetime, types: dict[str, int], **more: Any) -> Row:
    """Return a statement as a row, with these sums."""
    nothing = dict.fromkeys(Row._fields, 0) | dict.fromkeys(("kafka_time", "segment", "quarantine"))
    return Row(**nothing | {"sealed_at": sealed_at, "types": types, "events": sum(types.values())} | more)  # type: ignore[arg-type]


def summed(*stated: tuple[State, Row]) -> Figures:
    """Return the figures of statements."""
    figures = Figures()
    for sums in sum_by_hour(stated):
        figures.add(sums)
    return figures


def figures_of(days: int, each: timedelta | None = None) -> Figures:
    moment = NOW - timedelta(days=days)
    step = each or timedelta(days=days) / 100
    rows = list[tuple[State, Row]]()
    while moment <= NOW:
        rows.append(("verified", row(moment, {"login": 3}, stored=900)))
        moment += step
    return summed(*rows)


ROWS = st.tuples(
    st.sampled_from(["verified", "pending", "damaged", "expired"]),
    st.builds(
        row,
        st.integers(0, 4 * 24 * 60).map(lambda minutes: NOW - timedelta(minutes=minutes)),
        st.dictionaries(st.sampled_from(["login", "logout", "other"]), st.integers(1, 9)),
        kafka_time=st.none() | st.integers(0, 900).map(lambda seconds: NOW - timedelta(days=4, seconds=seconds)),
        **{name: st.integers(0, 9) for name in ("quarantined", "skipped", "lost", "unreadable", "stored", "inflated")},
    ),
)


# Types of equal count, which are added in another order one by one.
@example(rows=[("verified", row(NOW, {"b": 1})), ("verified", row(NOW - timedelta(hours=1), {"a": 1}))], cut=0)
@example(
    rows=[
        ("pending", row(NOW, {"b": 1, "c": 1, "d": 1})),
        ("verified", row(NOW, {"a": 1})),
        ("pending", row(NOW, {"a": 1, "e": 2})),
    ],
    cut=0,
)
@given(rows=st.lists(ROWS), cut=st.integers(0, 9))
def test_figures_do_not_depend_on_what_is_summed_together(rows: list[tuple[State, Row]], cut: int) -> None:
    """Statements one by one, some at a time, or all at once: sums, types, times, waits and buckets are the same."""
    whole, figures = summed(*rows), Figures()
    for several in (rows[:cut], *([each] for each in rows[cut:])):
        for sums in sum_by_hour(several):
            figures.add(sums)
    assert figures == whole
    assert (figures.buckets(), figures.top_types(3)) == (whole.buckets(), whole.top_types(3))
    total = whole.total
    assert total.statements == len(rows) == total.verified + total.pending + total.damaged + total.expired
    for name in ("events", "quarantined", "skipped", "lost", "unreadable", "stored", "inflated"):
        assert getattr(total, name) == sum(getattr(each, name) for _, each in rows)
    waits = [(each.sealed_at - each.kafka_time).total_seconds() for _, each in rows if each.kafka_time]
    assert max((bucket.wait for bucket in whole.buckets() if bucket.wait is not None), default=None) == max(
        waits, default=None
    )


def test_an_empty_hour_is_a_gap() -> None:
    """Nothing is drawn where nothing was sealed: as many bars as there are hours with statements."""
    figures = summed(*(("verified", row(NOW - timedelta(hours=hour), {"login": 3})) for hour in (0, 1, 20)))
    assert len(figures.buckets()) == 3
    events = charts.draw(figures.buckets(), figures.unit)[1]
    svg = base64.b64decode(events.source.partition(",")[2]).decode()
    assert svg.count(charts.BLUE.lower()) == 3


def test_states_do_not_need_colours() -> None:
    """Each state of statements has its own colour, of Okabe and Ito's, and its own hatching."""
    assert len({colour for _, _, colour, _ in charts.STATES}) == len({hatch for *_, hatch in charts.STATES}) == 4


def test_the_rarest_types_are_one_row() -> None:
    """Any number of event types gives a short table, whose sum is the sum of all."""
    figures = Figures()
    for number in range(300):
        types = {f"type-{number}-{each}": 1 + number for each in range(100)}
        for sums in sum_by_hour([("verified", row(NOW, types))]):
            figures.add(sums)
    top = figures.top_types(12)
    assert len(top) == 12
    assert top[-1][0] == OTHER
    assert sum(count for _, count in top) == sum(100 * (1 + number) for number in range(300))
    assert len(figures.types) < 20_000


def test_figures_need_memory_for_hours_not_for_statements() -> None:
    """Ten times as many statements in the same time take ten times as long at most, and no more buckets."""
    took = []
    for count in (2_000, 20_000):
        begun = time.process_time()
        figures = figures_of(2, timedelta(days=2) / count)
        took.append(time.process_time() - begun)
        assert len(figures.buckets()) <= 49
    assert took[1] < 25 * took[0] + 0.05


def test_a_report_reads_the_period_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as old an archive costs no more statements for the same period."""
    reads: list[int] = []
    real = reader.read_manifest

    def counted(store: Store, log: Log, sequence: int, holds: reader.Holds[Manifest]) -> Manifest:
        reads.append(sequence)
        return real(store, log, sequence, holds)

    monkeypatch.setattr(reader, "read_manifest", counted)
    counts = []
    growing = Growing(tmp_path, begun=datetime.now(UTC) - timedelta(minutes=1_000))
    settings = settings_of(growing.folder, growing.keyring)
    for more in (200, 600):
        growing.append(more, each=1)
        audited(settings)
        reads.clear()
        gathered(settings, since=growing.sealed_at(growing.size - 20))
        counts.append(len(reads))
    assert counts[1] <= counts[0] + 10


def test_many_findings_take_time_in_proportion(settings: Settings) -> None:
    """Four times as many findings take about four times as long and as many bytes, none is left out below the limit."""
    took, sizes = [], []
    for count in (500, 2_000):
        facts = gathered_with(settings, count)
        begun = time.process_time()
        page = render(facts)
        took.append(time.process_time() - begun)
        sizes.append(len(page))
        assert len(Elements(page).named("article")) == count
    assert took[1] < 9 * took[0] + 0.1
    assert sizes[1] < 5 * sizes[0]


def test_too_many_findings_are_counted(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond what a browser opens, the page says how many there are, and where."""
    monkeypatch.setattr("custody.report.page.FINDINGS_SHOWN", 5)
    page = Elements(render(gathered_with(settings, 20)))
    assert len(page.named("article")) == 5
    assert "These are 5 of 20 findings." in page.text
    assert "FROM findings WHERE audit = 0" in page.text


def gathered_with(settings: Settings, count: int) -> Facts:
    if not Path(settings.archive, "audits/000000000000.json").exists():
        audited(settings)
    facts = gathered(settings)
    names = sorted(CATALOGUE)
    many = [finding(names[number % len(names)], "a fault", key=f"events/{number}").to_dict() for number in range(count)]
    facts.audits.findings = msgspec.convert(many, list[StatedFinding])
    return facts


def test_spans() -> None:
    """Parts are those that nothing later has read, and are found by bisection."""
    assert subtract((0, 10), [(2, 3), (5, 7), (9, 12)]) == [(0, 2), (3, 5), (7, 9)]
    assert subtract((3, 4), [(0, 9)]) == []
    assert merge([(5, 6), (0, 2), (2, 3)]) == [(0, 3), (5, 6)]
    assert [contains([(0, 2), (4, 5)], number) for number in range(6)] == [True, True, False, False, True, False]
    read = LastRead()
    assert read.add([(4, 6)], 9) == [(4, 6)]
    assert read.add([(0, 10)], 8) == [(0, 4), (6, 10)]
    assert read.add([(0, 10)], 7) == []
    assert read.newest() == 9
