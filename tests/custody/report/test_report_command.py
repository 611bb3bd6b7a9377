"""`custody report`, the nightly report, and how the next signed audit states its digest."""

import errno
import json
import os
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest

from custody.cli.main import main
from custody.cli.report import NOT_STATED
from custody.findings import finding
from custody.keys.open import open_public
from custody.keys.trust_file import encode
from tasks.audit import conclude as concluding
from tasks.audit.conclude import conclude
from tasks.audit.objects import put_report
from tasks.audit.pieces import verify_pieces
from tasks.audit.plan import Request, plan_audit
from tasks.audit.report import make_report
from tasks.roll.record import Action, record
from tasks.settings import Settings
from tests.helpers.environment import clear_settings
from tests.helpers.sample import Sample, make_archive


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sample:
    clear_settings(monkeypatch)
    # Not beside the keyring, which would be the default one.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return make_archive(tmp_path)


@pytest.fixture
def settings(sample: Sample) -> Settings:
    return Settings(archive=str(sample.folder), keys=f"file:{sample.keyring}")


def audited(settings: Settings) -> int:
    plan = plan_audit(settings, Request(), datetime.now(UTC))
    return conclude(settings, plan, list(verify_pieces(settings, plan, plan.pieces))).sequence


def run(arguments: str, sample: Sample, capsys: pytest.CaptureFixture[str], keys: bool = True) -> tuple[int, str, str]:
    given = ["--archive", str(sample.folder), *(["--keys", str(sample.keyring)] if keys else [])]
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments.split(), *given])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_it_writes_a_page_of_the_newest_audit(
    settings: Settings, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says which audit the page is of, and its SHA-256. The operator's keys and public keys are both enough."""
    audited(settings)
    code, out, _ = run("--output page.html", sample, capsys)
    page = Path("page.html").read_bytes()
    assert (code, out.count("\n")) == (0, 2)
    assert "page.html: audit 0, sealed " in out
    assert f"SHA-256 {sha256(page).hexdigest()}" in out
    assert page.startswith(b"<!doctype html>")
    Path("trust.json").write_bytes(encode(None, open_public(settings.keys)))
    code, out, _ = run("--trust trust.json --json", sample, capsys, keys=False)
    document = json.loads(out)
    assert (code, document["audit"], document["verdict"], document["verified"]) == (0, 0, "verified", True)
    assert (document["file"], document["sha256"]) == (
        "integrity.html",
        sha256(Path("integrity.html").read_bytes()).hexdigest(),
    )
    code, out, _ = run("--json", sample, capsys, keys=False)
    assert json.loads(out)["verified"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ("", 1, "run `custody audit` first"),
        ("--since 1d --until 2d", 2, "--until must be later than --since"),
        ("--check nothing.html", 2, "nothing.html"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    sample: Sample, capsys: pytest.CaptureFixture[str], arguments: str, code: int, says: str
) -> None:
    """Without an audit, with a period that is none, and without the file to check, one line says what to do."""
    got, out, err = run(arguments, sample, capsys)
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert says in err
    assert not Path("integrity.html").exists()


def test_a_page_that_cannot_be_written_is_one_line(
    settings: Settings, sample: Sample, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder that is not there is a wrong argument."""
    audited(settings)
    code, _, err = run("--output none/page.html", sample, capsys)
    assert (code, err.count("\n")) == (2, 1)
    assert "none/page.html" in err


@pytest.mark.parametrize("mode", [None, 0o640])
def test_a_page_is_written_in_one_step(
    settings: Settings,
    sample: Sample,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: int | None,
) -> None:
    """A full disk leaves the page that was there. It keeps its mode; a new one is its owner's alone."""
    audited(settings)
    path = Path("page.html")
    if mode is not None:
        path.write_text("the page of before")
        path.chmod(mode)
    before = sorted(Path().iterdir())
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full_disk)
        code, out, err = run("--output page.html", sample, capsys)
    assert (code, out, sorted(Path().iterdir())) == (1, "", before)
    assert "page.html could not be written: No space left on device" in err
    assert mode is None or path.read_text() == "the page of before"
    assert run("--output page.html", sample, capsys)[0] == 0
    assert path.read_bytes().startswith(b"<!doctype html>")
    assert path.stat().st_mode & 0o777 == (mode or 0o600)


def full_disk(_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_large_file_is_checked_whole(settings: Settings, sample: Sample, capsys: pytest.CaptureFixture[str]) -> None:
    """The digest is that of the file, whatever its size."""
    audited(settings)
    size = 256 * 1_048_576 + 5
    with Path("large.html").open("wb") as file:
        file.truncate(size)
    digest = sha256()
    for start in range(0, size, 1_048_576):
        digest.update(bytes(min(1_048_576, size - start)))
    code, out, _ = run("--check large.html --json", sample, capsys)
    assert (code, json.loads(out)["sha256"]) == (NOT_STATED, digest.hexdigest())


def check(page: bytes, sample: Sample, capsys: pytest.CaptureFixture[str]) -> tuple[int, int | None]:
    Path("kept.html").write_bytes(page)
    code, out, _ = run("--check kept.html --json", sample, capsys)
    document = json.loads(out)
    assert document["stated"] == (code == 0)
    return code, document.get("audit")


@pytest.mark.parametrize("by", ["an audit", "a record of the roll"])
def test_the_next_audit_states_the_digest(
    settings: Settings, sample: Sample, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    """What is signed next after a report names it by its SHA-256: an audit, or a record of the roll."""
    sequence = audited(settings)
    page = make_report(settings, sequence)
    put_report(settings, sequence, page)
    assert check(page, sample, capsys) == (NOT_STATED, None)
    if by == "an audit":
        assert audited(settings) == 1
    else:
        assert record(settings, [Action("delete", "an index", "done")], datetime.now(UTC)) == 1
        assert audited(settings) == 2
    assert check(page, sample, capsys) == (0, 1)
    assert check(page.replace(b"VERIFIED", b"verified", 1), sample, capsys) == (NOT_STATED, None)
    assert run("--check kept.html", sample, capsys)[1].startswith("Not stated: no signed audit names SHA-256 ")


def test_a_digest_in_a_list_of_objects_is_stated(
    settings: Settings, sample: Sample, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An audit with many objects names one object that lists them: a report in that list is stated as well."""
    monkeypatch.setattr("tasks.audit.objects.OBJECTS_INLINE", 0)
    sequence = audited(settings)
    page = make_report(settings, sequence)
    put_report(settings, sequence, page)
    audited(settings)
    assert check(page, sample, capsys) == (0, 1)


def test_findings_in_an_object_are_whole(settings: Settings, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """Findings that are too many for an audit are on the page. If their object was changed, the page says so."""
    monkeypatch.setattr("custody.format.audit.FINDINGS_INLINE", 1)
    many = [finding("foreign", f"fault {number}", key=f"key-{number}").to_dict() for number in range(7)]
    monkeypatch.setattr(concluding, "_merged", lambda *_: many)
    sequence = audited(settings)
    page = make_report(settings, sequence).decode()
    assert all(f"key-{number}<" in page for number in range(7))
    stored = next(path for path in (sample.folder / "audits/objects").iterdir() if b"key-6" in path.read_bytes())
    stored.unlink()
    stored.write_text("{}")
    page = make_report(settings, sequence).decode()
    assert "its bytes differ from the signed digest" in page
    assert '<section class="banner bad"' in page
