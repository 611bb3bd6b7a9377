"""Start a real Elasticsearch: one node from Maven's artifact, on loopback, on free ports, in a folder of its own.

The artifact is the server without most of its modules (no `GET /`, no ILM): templates, bulk,
strict mappings, aliases, aggregations and data tiers are the real thing. `CUSTODY_TEST_ELASTICSEARCH` names another
version: 8.19.21 runs on Java 17, 9.x needs 21. Elasticsearch refuses to run as root; root's tests run it as nobody.

The fixture `elastic` is one node for all processes of a test session. Indices are a test's own: `unused_prefix`.
"""

import base64
import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

from tests.servers.guard import start_guard
from tests.servers.kafka import BRIEF, CACHE
from tests.servers.ports import free_ports
from tests.servers.require import ServerUnavailableError
from tests.servers.shared import Server, locked, one_for_all

VERSION = os.environ.get("CUSTODY_TEST_ELASTICSEARCH", "9.2.4")
_ARTIFACT = f"org.elasticsearch.distribution.integ-test-zip:elasticsearch:{VERSION}:zip"
_UNPACK = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:unpack"
_OLDEST_JAVA = 21 if int(VERSION.partition(".")[0]) >= 9 else 17
_FETCH_SECONDS = 400
_START_SECONDS = 120
_NOBODY = 65534

_CONFIG = """\
cluster.name: tests
node.name: {name}
path.data: {folder}/data
path.logs: {folder}/logs
network.host: 127.0.0.1
http.port: {port}
transport.port: {transport}
{discovery}
{security}
cluster.routing.allocation.disk.threshold_enabled: false
action.destructive_requires_name: false
{settings}
"""

_OPEN = "xpack.security.enabled: false"
_GUARDED = """\
xpack.security.enabled: true
xpack.security.autoconfiguration.enabled: false
xpack.security.http.ssl.enabled: false
xpack.security.transport.ssl.enabled: false"""

_ALONE = "discovery.type: single-node"
_FOUNDING = """\
cluster.initial_master_nodes: [{name}]
discovery.seed_hosts: []
node.roles: {roles}"""
_JOINING = """\
discovery.seed_hosts: ["127.0.0.1:{seed}"]
node.roles: {roles}"""


class ElasticsearchUnavailableError(ServerUnavailableError):
    """This machine cannot run Elasticsearch; the message says what it lacks."""


class ElasticsearchServer(Server):
    """One node: started, stopped, killed and started again on the same data and port.

    It is a cluster by itself, unless it is given roles: then it founds a cluster that others join, or joins one.

    Args:
        heap: Java's, as Java writes it.
        name: the node's.
        roles: the node's (`data_warm`, say); all of them where there are none.
        joins: the node, of roles too, whose cluster it joins; they may start at the same time, see `launch`.
        measured: as in production, for benchmarks: Java compiles and collects in the way that pays in the long run.
        settings: more of the node's own, by name.
    """

    def __init__(
        self,
        heap: str = "512m",
        name: str = "tests-1",
        roles: Sequence[str] = (),
        joins: "ElasticsearchServer | None" = None,
        *,
        measured: bool = False,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        # Not below a private folder: whoever it runs as has to get there.
        self.folder = Path(tempfile.mkdtemp(prefix="custody-elasticsearch-"))
        self.heap, self._measured, self._settings = heap, measured, settings or {}
        self.name, self._roles, self._joins = name, roles, joins
        self.port, self._transport = free_ports(2)

    _security = _OPEN

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    @staticmethod
    def unused_prefix() -> str:
        """Return a prefix of indices that nobody has: tests share the node."""
        return f"audit-{uuid.uuid4().hex[:12]}"

    def start(self, owner: int | None = None) -> None:
        """Start the node and return when it answers; after `kill`, on the same data.

        Args:
            owner: the process with which it ends at the latest; this one if None.

        Raises:
            ElasticsearchUnavailableError: this machine lacks Java or Maven, or cannot fetch it.
        """
        self.launch(owner)
        self.wait()

    def launch(self, owner: int | None = None) -> None:
        """Start the node as `start` does, and return at once: `wait` says when it answers."""
        java, home = find_java_home(), fetch()
        self._lay_out(home)
        # Elasticsearch does not start as root.
        user = _NOBODY if os.getuid() == 0 else None
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self.folder / "home" / "bin" / "elasticsearch")],
                cwd=self.folder,
                env={
                    "PATH": os.environ["PATH"],
                    "HOME": str(self.folder),
                    "ES_JAVA_HOME": str(java),
                    "ES_PATH_CONF": str(self.folder / "config"),
                    "ES_TMPDIR": str(self.folder / "tmp"),
                    "ES_JAVA_OPTS": " ".join((f"-Xms{self.heap}", f"-Xmx{self.heap}", *self._brief())),
                    "CLI_JAVA_OPTS": "-Xmx64m -XX:+UseSerialGC",
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
            )
        self._guard = start_guard(owner or os.getpid(), self._process.pid, self.folder)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _brief(self) -> tuple[str, ...]:
        return () if self._measured else BRIEF

    def _lay_out(self, home: Path) -> None:
        if not (self.folder / "home").exists():
            with contextlib.suppress(OSError):
                shutil.copytree(home, self.folder / "home", copy_function=os.link, symlinks=True)
            if not (self.folder / "home" / "bin" / "elasticsearch").exists():
                shutil.rmtree(self.folder / "home", ignore_errors=True)
                shutil.copytree(home, self.folder / "home", symlinks=True)
            shutil.copytree(home / "config", self.folder / "config")
            options = (home / "config" / "jvm.options").read_text()
            # Java takes one collector alone.
            left_out = ("Xlog:gc", "ErrorFile", *(("UseG1GC",) if self._brief() else ()))
            kept = [line for line in options.splitlines() if not any(option in line for option in left_out)]
            (self.folder / "config" / "jvm.options").write_text("\n".join(kept) + "\n")
            for name in ("data", "logs", "tmp"):
                (self.folder / name).mkdir()
        roles = json.dumps(list(self._roles))
        if self._joins is not None:
            discovery = _JOINING.format(seed=self._joins._transport, roles=roles)
        else:
            discovery = _FOUNDING.format(name=self.name, roles=roles) if self._roles else _ALONE
        config = _CONFIG.format(
            folder=self.folder,
            name=self.name,
            port=self.port,
            transport=self._transport,
            discovery=discovery,
            security=self._security,
            settings="\n".join(f"{name}: {value}" for name, value in self._settings.items()),
        )
        (self.folder / "config" / "elasticsearch.yml").write_text(config)
        (self.folder / "server.log").touch()
        if os.getuid() == 0:
            for path in (self.folder, *(self.folder / name for name in ("config", "data", "logs", "tmp"))):
                os.chown(path, _NOBODY, _NOBODY)
                for inner in path.rglob("*") if path != self.folder else ():
                    os.chown(inner, _NOBODY, _NOBODY)

    def wait(self) -> None:
        """Return when the node answers, and knows a master.

        Raises:
            RuntimeError: it ended, or takes too long; the message ends with its log.
        """
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = (self.folder / "server.log").read_text(errors="replace")[-3000:]
                raise RuntimeError(f"Elasticsearch did not start within {_START_SECONDS} s; its output ends:\n{tail}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        health = f"{self.url}/_cluster/health?wait_for_status=yellow&timeout=2s"
        try:
            with urllib.request.urlopen(urllib.request.Request(health, headers=self._headers()), timeout=5):  # noqa: S310
                return True
        except (OSError, urllib.error.URLError):
            return False

    def _headers(self) -> dict[str, str]:
        return {}


class GuardedElasticsearch(ElasticsearchServer):
    """A node whose clients must say who they are: users of a file, each with the one role of its own name.

    Elasticsearch's own API keys cannot be had here: their index needs a module that is not in the artifact. So a proxy
    before it sends a user's name and password (`authorization`), and custody's errors come from the real node.

    Args:
        roles: what users may do, by their names, as in Elasticsearch's roles.yml. The user `admin` may do everything.
    """

    _security = _GUARDED

    def __init__(self, roles: Mapping[str, Mapping[str, object]]) -> None:
        super().__init__("384m")
        self._users = roles

    @staticmethod
    def authorization(user: str) -> str:
        """Return the header by which a user says who it is."""
        return "Basic " + base64.b64encode(f"{user}:{user}-password".encode()).decode()

    def _headers(self) -> dict[str, str]:
        return {"Authorization": self.authorization("admin")}

    def _lay_out(self, home: Path) -> None:
        super()._lay_out(home)
        names = {"admin": "superuser", **{name: name for name in self._users}}
        # A password that has no known hash's prefix is compared as it is.
        passwords = "".join(f"{name}:{name}-password\n" for name in names)
        roles = "".join(f"{role}:{name}\n" for name, role in names.items())
        # Elasticsearch reads this file role by role, each from a line that is not indented.
        may = "".join(
            f"{name}:\n" + "".join(f"  {key}: {json.dumps(value)}\n" for key, value in role.items())
            for name, role in self._users.items()
        )
        for name, content in {"users": passwords, "users_roles": roles, "roles.yml": may}.items():
            path = self.folder / "config" / name
            path.write_text(content)
            if os.getuid() == 0:
                os.chown(path, _NOBODY, _NOBODY)


@functools.cache
def find_java_home() -> Path:
    """Return the folder of a Java that is new enough.

    Raises:
        ElasticsearchUnavailableError: there is none.
    """
    places = [os.environ.get("JAVA_HOME"), *sorted(map(str, Path("/usr/lib/jvm").glob("*")))]
    on_path = shutil.which("java")
    if on_path:
        places.append(str(Path(on_path).resolve().parents[1]))
    for place in filter(None, places):
        java = Path(place) / "bin" / "java"
        if not java.exists():
            continue
        shown = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False).stderr
        match = re.search(r'version "(\d+)', shown)
        if match and int(match[1]) >= _OLDEST_JAVA:
            return Path(place)
    raise ElasticsearchUnavailableError(f"no Java: Elasticsearch {VERSION} needs Java {_OLDEST_JAVA} or newer")


def fetch() -> Path:
    """Return the folder with Elasticsearch, fetched by Maven unless it is there.

    Raises:
        ElasticsearchUnavailableError: there is no Maven, or it cannot fetch it.
    """
    home, partial = CACHE / f"elasticsearch-{VERSION}", CACHE / f"elasticsearch-{VERSION}.partial"
    CACHE.mkdir(parents=True, exist_ok=True)
    with locked(CACHE / "elasticsearch.lock"):
        if home.exists():
            return home
        maven = shutil.which("mvn")
        if maven is None:
            raise ElasticsearchUnavailableError(f"no Maven (mvn): it fetches Elasticsearch {VERSION}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            done = subprocess.run(
                [maven, "-q", "-B", _UNPACK, f"-Dartifact={_ARTIFACT}", f"-DoutputDirectory={partial}"],
                cwd=partial,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_FETCH_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ElasticsearchUnavailableError(f"Maven did not fetch {_ARTIFACT} in {_FETCH_SECONDS} s") from None
        unpacked = partial / f"elasticsearch-{VERSION}"
        if done.returncode or not unpacked.exists():
            raise ElasticsearchUnavailableError(f"Maven cannot fetch {_ARTIFACT}: {(done.stdout + done.stderr)[-500:]}")
        for name in ("plugins", "logs"):
            (unpacked / name).mkdir(exist_ok=True)
        for path in unpacked.rglob("*"):
            executable = path.is_dir() or path.parent.name == "bin"
            path.chmod(0o755 if executable else 0o644)
        unpacked.rename(home)
        shutil.rmtree(partial, ignore_errors=True)
    return home


@pytest.fixture(scope="session")
def elastic(pytestconfig: pytest.Config) -> Iterator[ElasticsearchServer]:
    """A running Elasticsearch, one for all processes of the test session. Name indices by `unused_prefix`."""
    yield from one_for_all(pytestconfig, "elasticsearch", lambda _: ElasticsearchServer())
