"""Compose's own loader and BuildKit's own checks accept the compose file and the Dockerfile of deployments/."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.servers.go import build, prometheus

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = ROOT / "deployments"
COMPOSE, EXAMPLE = DEPLOYMENTS / "compose.yaml", DEPLOYMENTS / "custody.env.example"
ONCE = {"topic", "bucket", "init", "deploy"}
"""Services that end."""
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def program() -> Path:
    return build(Path(__file__).parent / "deployments", "deployments", 500)


def run(program: Path, *arguments: object) -> tuple[int, str]:
    """Run the program without a variable of this machine that the compose file names."""
    ran = subprocess.run(
        [program, *map(str, arguments)], env={"HOME": "/"}, capture_output=True, text=True, timeout=60, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def project(program: Path) -> Any:
    """The compose file as Compose sees it, with the values of the example."""
    code, shown = run(program, "compose", COMPOSE, EXAMPLE)
    assert code == 0, shown
    return json.loads(shown)


def test_compose_needs_each_secret(program: Path, tmp_path: Path) -> None:
    """The example names each variable that the compose file takes, and no other. Without one of them nothing starts."""
    lines = [line for line in EXAMPLE.read_text().splitlines() if re.match(r"[A-Z]", line)]
    names = {line.partition("=")[0] for line in lines}
    assert names == set(re.findall(r"\$\{([A-Z0-9_]+)", COMPOSE.read_text()))
    for name in names:
        (tmp_path / "env").write_text("\n".join(line for line in lines if not line.startswith(f"{name}=")))
        code, shown = run(program, "compose", COMPOSE, tmp_path / "env")
        assert (code, "set it in deployments/.env" in shown) == (1, True), name


def test_compose_refuses_what_is_wrong(program: Path, tmp_path: Path) -> None:
    """Compose's loader refuses a misspelt key and a service that is not there: so its silence says something."""
    for old, new in (("restart: unless-stopped", "restrat: always"), ("s3: {condition", "s4: {condition")):
        (tmp_path / "compose.yaml").write_text(COMPOSE.read_text().replace(old, new, 1))
        code, _ = run(program, "compose", tmp_path / "compose.yaml", EXAMPLE)
        assert code == 1, new


def test_what_is_published(project: Any) -> None:
    """Only Prefect's page and Grafana can be reached, and only from this machine."""
    ports = {
        name: [(port["host_ip"], port["target"]) for port in service["ports"]]
        for name, service in project["services"].items()
        if service.get("ports")
    }
    assert ports == {"prefect": [("127.0.0.1", 4200)], "grafana": [("127.0.0.1", 3000)]}
    outside = {name for name, network in project["networks"].items() if not network.get("internal")}
    assert outside == {"published"}
    reaching = {name for name, service in project["services"].items() if outside & set(service["networks"])}
    assert reaching == {"prefect", "grafana", "worker"}


def test_who_has_secrets(project: Any) -> None:
    """Only what signs or writes the archive has its settings: not Prefect's server, whose users could read them."""
    given = {
        name: [variable for variable in service.get("environment") or {} if variable.startswith(("CUSTODY_", "AWS_"))]
        for name, service in project["services"].items()
    }
    assert {name for name, variables in given.items() if variables} == {"s3", "bucket", "init", "worker"}
    keys = {name for name, service in project["services"].items() if "state" in json.dumps(service.get("volumes", []))}
    assert keys == {"init", "worker"}


def test_each_service_is_bounded(project: Any) -> None:
    """Each service has a pinned image, a memory limit, a rule for restarts, bounded logs; most have a health check."""
    for name, service in project["services"].items():
        assert re.fullmatch(r"[a-z/-]+:v?[0-9]+(\.[0-9]+)+", service["image"]), name
        assert int(service["mem_limit"]) > 0, name
        assert service["restart"] == ("on-failure:5" if name in ONCE else "unless-stopped"), name
        assert "max-size" in service["logging"]["options"], name
    checked = {name for name, service in project["services"].items() if "healthcheck" in service}
    assert set(project["services"]) - checked == ONCE | {"worker", "node-exporter"}


def test_our_image_writes_nowhere_else(project: Any) -> None:
    """Each container of ours has a read-only root file system, no capability, and no way to get one."""
    ours = [service for service in project["services"].values() if service["image"].startswith("custody:")]
    assert len(ours) == 5
    for service in ours:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "user" not in service


def test_mounted_files_exist(project: Any) -> None:
    """Each file or folder that is mounted is in the checkout."""
    for service in project["services"].values():
        for volume in service.get("volumes", []):
            if volume["type"] == "bind":
                assert Path(volume["source"]).exists(), volume


def test_the_dockerfile(program: Path) -> None:
    """`docker build --check` has nothing to say."""
    assert run(program, "dockerfile", DEPLOYMENTS / "Dockerfile") == (0, "")


def test_the_dockerfile_is_checked(program: Path, tmp_path: Path) -> None:
    """A secret in a layer and a relative path are found: so the silence above says something."""
    text = (DEPLOYMENTS / "Dockerfile").read_text()
    (tmp_path / "Dockerfile").write_text(text.replace("USER", "ENV PASSWORD=secret\nUSER"))
    code, shown = run(program, "dockerfile", tmp_path / "Dockerfile")
    assert (code, "SecretsUsedInArgOrEnv" in shown) == (1, True)


def test_the_image_has_what_a_run_needs() -> None:
    """What is copied is in the checkout and passes .dockerignore. It is all that the packages import and read."""
    text = (DEPLOYMENTS / "Dockerfile").read_text()
    copied = {
        source for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE) for source in line.split()[:-1]
    }
    assert copied >= {"pyproject.toml", "custody", "tasks", "flows", "notebooks", "deployments/prefect.yaml"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_grafana_and_prometheus_find_their_files(project: Any) -> None:
    """Provisioning names the folder of dashboards and the server that the compose file has."""
    provisioning = DEPLOYMENTS / "grafana" / "provisioning"
    dashboards = yaml.safe_load((provisioning / "dashboards" / "custody.yaml").read_text())
    mounted = {volume["target"] for volume in project["services"]["grafana"]["volumes"]}
    assert {provider["options"]["path"] for provider in dashboards["providers"]} <= mounted
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (custody, *_) = yaml.safe_load((DEPLOYMENTS / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert custody["static_configs"] == [{"targets": ["node-exporter:9100"]}]


def test_prometheus_reads_its_configuration(tmp_path: Path) -> None:
    """Prometheus' own parser takes the configuration, and refuses a misspelt key. Rules are found by their pattern."""
    file = DEPLOYMENTS / "prometheus" / "prometheus.yml"
    assert run(prometheus(), "config", file) == (0, "")
    (tmp_path / "prometheus.yml").write_text(file.read_text().replace("scrape_interval", "scrape_intreval"))
    code, shown = run(prometheus(), "config", tmp_path / "prometheus.yml")
    assert (code, "scrape_intreval" in shown) == (1, True)
    assert Path("rules.yml").match(yaml.safe_load(file.read_text())["rule_files"][0])
