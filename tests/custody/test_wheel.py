"""What an auditor installs: the wheel holds custody alone, and verifies an archive without the operator's packages."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from custody import version
from custody.cli.operators import COMMANDS
from custody.errors import ConfigurationError
from custody.format import archive_file, audit, manifest
from custody.settings import OPERATORS_SECTIONS
from tests.helpers.foreign import make_foreign, was_imported
from tests.helpers.sample import make_archive

ROOT = Path(__file__).parent.parent.parent
OPERATORS_PACKAGES = {"prefect", "confluent-kafka", "elasticsearch", "boto3", "botocore", "fastapi", "sqlalchemy"}


def run(*command: str | Path, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program as a user would, without our variables, the checkout or its environment in reach."""
    hidden = ("CUSTODY_", "PYTHON", "VIRTUAL_ENV", "COVERAGE", "COV_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, "COLUMNS": "200", **more},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel, and what it depends on, into an environment of its own; return that environment's `bin`."""
    uv = shutil.which("uv")
    assert uv, "tests are started by uv, which is not on the path"
    environment = tmp_path_factory.mktemp("clean") / "venv"
    made = run(uv, "venv", "--python", sys.executable, environment)
    assert made.returncode == 0, made.stderr
    # In the checkout, so that pyproject.toml's versions hold here too.
    installed = run(uv, "pip", "install", "--python", environment / "bin" / "python", wheel, cwd=ROOT)
    assert installed.returncode == 0, installed.stderr
    return environment / "bin"


def test_wheel_holds_custody_alone(wheel: Path) -> None:
    """Nobody gets another top-level name; the specification and the types travel with the code."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"custody"}
    assert {"custody/FORMAT.md", "custody/py.typed", "custody/cli/main.py"} <= set(names)
    assert any(name.endswith("/licenses/LICENSE") for name in names)


def test_clean_environment_has_nothing_of_the_operator(clean: Path) -> None:
    """Installing custody does not install Prefect, a Kafka client, Elasticsearch or AWS's."""
    script = "import importlib.metadata as m; print(*(d.metadata['Name'].lower() for d in m.distributions()))"
    listed = run(clean / "python", "-I", "-c", script)
    installed = set(listed.stdout.split())
    assert "custody-archive" in installed
    # Somebody else's package on PyPI.
    assert "custody" not in installed
    assert not installed & OPERATORS_PACKAGES


def test_a_wheel_knows_what_it_was_made_from(clean: Path, tmp_path: Path) -> None:
    """`custody --version` names the distribution, the commit and the formats, where there is no git too."""
    shown = dict(line.split(" ", 1) for line in run(clean / "custody", "--version", cwd=tmp_path).stdout.splitlines())
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()
    assert shown["distribution"] == "custody-archive"
    assert shown["commit"].removesuffix(", modified") == head
    assert shown["formats"].split(", ") == [archive_file.FORMAT, manifest.FORMAT, audit.FORMAT]
    assert shown["custody"] in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_another_repository_is_not_the_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Installed into an environment within somebody's checkout, custody does not take their commit for its own."""
    package = tmp_path / "project" / ".venv" / "custody"
    package.mkdir(parents=True)
    subprocess.run(["git", "init", "-q", tmp_path / "project"], check=True)
    monkeypatch.setattr(version, "_PACKAGE", package)
    monkeypatch.setattr(version, "_COMMIT", package / "COMMIT")
    assert version.commit() is None


@pytest.fixture
def checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make a small checkout with one commit, and let it be the one that runs."""
    root = tmp_path / "checkout"
    for name in ("custody", "flows", "tasks", "docs"):
        (root / name).mkdir(parents=True)
        (root / name / "kept.py").touch()
    (root / ".gitignore").write_text("__pycache__/\n")
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for arguments in (["init", "-q"], ["add", "."], [*author, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)
    monkeypatch.setattr(version, "_PACKAGE", root / "custody")
    monkeypatch.setattr(version, "_COMMIT", root / "custody" / "COMMIT")
    return root


@pytest.mark.parametrize(
    ("added", "is_modified"),
    [
        ("custody/evil.py", True),
        ("custody/new/evil.py", True),
        ("flows/evil.py", True),
        ("tasks/e vil.py", True),
        ("custody/kept.py", True),
        ("docs/kept.py", True),
        ("notes.txt", False),
        ("docs/draft.md", False),
        ("custody/__pycache__/kept.pyc", False),
    ],
)
def test_added_code_is_a_modification(checkout: Path, added: str, is_modified: bool) -> None:
    """A commit is said alone only if the code that runs is the commit's: files that git does not know count too."""
    clean = version.commit()
    assert clean is not None
    assert not clean.endswith(", modified")
    path = checkout / added
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("changed")
    assert version.commit() == (f"{clean}, modified" if is_modified else clean)


def test_a_checkout_that_is_not_installed(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is what its pyproject.toml says. Without one, or with another project's, one line says so."""
    monkeypatch.setattr(version, "DISTRIBUTION", "custody-archive-that-nobody-installed")
    project = checkout / "pyproject.toml"
    for text in (None, "no TOML", '[project]\nname = "theirs"\nversion = "9"\n', "project = 1", "[project]\n"):
        if text is not None:
            project.write_text(text)
        with pytest.raises(ConfigurationError, match=r"the version is not known: .* is not installed") as caught:
            version.version()
        assert "\n" not in str(caught.value)
    project.write_text(f'[project]\nname = "{version.DISTRIBUTION}"\nversion = "1.2.3"\n')
    assert version.version() == "1.2.3"


def test_a_build_that_fails_leaves_no_file(tmp_path: Path) -> None:
    """What the build adds is removed from the temporary folder also if the build fails after it."""
    project, temporary = tmp_path / "project", tmp_path / "temporary"
    (project / "custody").mkdir(parents=True)
    temporary.mkdir()
    shutil.copy(ROOT / "deployments" / "hatch_build.py", project)
    shutil.copy(ROOT / "custody" / "version.py", project / "custody")
    (project / "custody" / "COMMIT").write_text("0" * 40)
    text = (
        '[project]\nname = "small"\nversion = "1"\n[tool.hatch.build.hooks.custom]\npath = "hatch_build.py"\n'
        '[tool.hatch.build.targets.wheel]\npackages = ["custody"]\nexclude = ["custody/COMMIT"]\n'
    )
    for more, code in (("", 0), ('[tool.hatch.build.targets.wheel.force-include]\n"missing" = "x"\n', 1)):
        (project / "pyproject.toml").write_text(text + more)
        build = (sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "made")
        built = run(*build, cwd=project, TMPDIR=str(temporary))
        assert (built.returncode, "missing" in built.stderr) == (code, bool(code))
        # Hatchling leaves its own unfinished wheel.
        assert [path for path in temporary.iterdir() if path.suffix != ".whl"] == []
    (wheel,) = (tmp_path / "made").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("custody/COMMIT") == b"0" * 40


def test_auditor_verifies_an_archive_with_the_wheel_alone(clean: Path, tmp_path: Path) -> None:
    """A good archive is verified, a changed byte is found, by what the wheel brings."""
    sample = make_archive(tmp_path)
    command = (clean / "custody", "verify", sample.folder, "--keys", f"file:{sample.keyring}", "--json")
    good = run(*command, cwd=tmp_path)
    assert good.returncode == 0, good.stdout + good.stderr
    segment = next(sample.folder.glob("events/**/*.gz"))
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    bad = run(*command, cwd=tmp_path)
    assert bad.returncode == 13, bad.stdout + bad.stderr
    assert json.loads(bad.stdout.splitlines()[0])["finding"] == "segment-hash"


def test_operators_commands_say_where_they_are(clean: Path, tmp_path: Path) -> None:
    """Without the checkout, each operator's command is a usage error that says where it is to be had.

    The help lists what can be run here, and names the others below.
    """
    foreign = make_foreign(tmp_path / "foreign")
    for command in (*COMMANDS, "verify --kafka"):
        said = run(clean / "custody", *command.split(), cwd=foreign, PYTHONPATH=str(foreign))
        assert said.returncode == 2
        assert said.stderr.startswith(f"custody: `custody {command}` is for operators")
        assert "checkout" in said.stderr
        assert said.stderr.count("\n") == 1
    shown = run(clean / "custody", "--help", cwd=foreign, PYTHONPATH=str(foreign))
    assert shown.returncode == 0
    listed, _, below = shown.stdout.partition("Operators' commands")
    assert "verify" in listed
    assert "new-epoch" not in listed
    assert ", ".join(COMMANDS) in " ".join(below.split())
    assert not was_imported(foreign)


def test_settings_are_the_auditors(clean: Path, tmp_path: Path) -> None:
    """A custody.toml that serves operators too is read, and `custody config` shows what this installation knows."""
    foreign = make_foreign(tmp_path / "foreign")
    (foreign / "custody.toml").write_text('archive = "theirs"\n[kafka]\ngroup = "theirs"\n[tomorrow]\n')
    refused = run(clean / "custody", "config", cwd=foreign, PYTHONPATH=str(foreign))
    assert (refused.returncode, "tomorrow in custody.toml is not a setting" in refused.stderr) == (2, True)
    (foreign / "custody.toml").write_text('archive = "theirs"\n[kafka]\ngroup = "theirs"\n')
    shown = run(clean / "custody", "config", "--json", cwd=foreign, PYTHONPATH=str(foreign))
    settings = json.loads(shown.stdout)
    assert settings["archive"] == "theirs"
    assert not set(settings) & set(OPERATORS_SECTIONS)
    assert not was_imported(foreign)


def test_archives_in_s3_say_what_to_install(clean: Path, tmp_path: Path) -> None:
    """Without the extra, an archive in S3 is refused with the name of the extra that is missing."""
    made = run(clean / "custody", "show", "archive.json", "--archive", "s3://bucket/prefix", cwd=tmp_path)
    assert made.returncode == 2
    assert "its extra `s3`" in made.stderr
