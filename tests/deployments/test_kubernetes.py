"""`deployments/kubernetes/`: Kubernetes' own schemas take the manifests, and what they name exists.

No Kubernetes could be had: whether its API takes them, and pods start, is not tested (`deployments/README.md`).
"""

import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import distributed.cli.dask_scheduler
import distributed.cli.dask_worker
import kubernetes_validate  # type: ignore[import-untyped]
import prefect.cli.work_pool
import prefect.cli.worker
import pytest
import yaml
from prefect.utilities.templating import apply_values
from typer.main import get_command

from custody.cli.main import app
from tasks.drain.signals import GRACE_SECONDS
from tasks.search.follower import GRACE_SECONDS as INDEX_SECONDS
from tasks.settings import Settings
from tests.helpers.environment import clear_settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deployments" / "kubernetes"
VERSION = "1.34"
TEMPLATE = json.loads((FOLDER / "work-pool.json").read_text())
COMMAND = ["prefect", "flow-run", "execute"]
"""What Prefect's worker fills in as the command of a run."""


def run_of_the_pool() -> dict[str, Any]:
    """Return the Job that the template makes of a run, as Prefect's worker fills it in."""
    defaults = {
        name: field["default"] for name, field in TEMPLATE["variables"]["properties"].items() if "default" in field
    }
    values = {**defaults, "name": "a-run", "command": COMMAND, "env": [], "labels": {}, "annotations": {}}
    made: dict[str, Any] = apply_values(TEMPLATE["job_configuration"]["job_manifest"], values)
    return made


DOCUMENTS = {
    f"{path.name}: {document['kind']} {document['metadata']['name']}": document
    for path in sorted(FOLDER.glob("*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
    if document["kind"] != "Kustomization"
} | {"work-pool.json: Job": run_of_the_pool()}


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and specification of each pod."""
    for name, document in DOCUMENTS.items():
        spec = document.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            yield name, spec["template"]["spec"]


PODS = dict(pods())
CONTAINERS = {name: container for name, pod in PODS.items() for container in pod["containers"]}
RUNS = {name: pod for name, pod in PODS.items() if pod.get("serviceAccountName") == "custody-runs"}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kubernetes_schemas_take_each_document(name: str) -> None:
    """Strictly: a misspelt field is an error, which Kubernetes passes over."""
    kubernetes_validate.validate(DOCUMENTS[name], VERSION, strict=True)


def test_the_kustomization_names_files_that_exist() -> None:
    """Prefect's worker is installed as a whole; the files of the other ways are named in the README."""
    made = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = {*made["resources"], *made["configMapGenerator"][0]["files"], "kustomization.yaml"}
    others = {path.name for path in FOLDER.iterdir()} - files
    assert others == {"cronjobs.yaml", "dask.yaml"}
    readme = (FOLDER.parent / "README.md").read_text()
    assert all(f"`kubernetes/{name}`" in readme for name in others)


def test_each_variable_is_a_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The settings take what the ConfigMap says, and no variable of a container is misspelt."""
    clear_settings(monkeypatch)
    monkeypatch.chdir(tmp_path)
    given = dict(DOCUMENTS["settings.yaml: ConfigMap custody"]["data"])
    assert not [name for name in given if re.search("PASSW|SECRET|API_KEY|URLS", name)]
    for container in CONTAINERS.values():
        given |= {
            each["name"]: each.get("value", "") for each in container.get("env", []) if "CUSTODY_" in each["name"]
        }
    for name, value in given.items():
        # The words in capitals are the reader's own.
        monkeypatch.setenv(name, re.sub("BROKER|COLLECTOR|ELASTICSEARCH|REGION", "mine", value))
    assert Settings().insecure() == []


def test_what_is_referred_to_is_made() -> None:
    """ConfigMaps, Secrets and accounts are made by a file here, or by a command in the README."""
    readme = (FOLDER.parent / "README.md").read_text()
    made = {(document["kind"], document.get("metadata", {}).get("name")) for document in DOCUMENTS.values()}
    made |= {("ConfigMap", "custody-work-pool")}
    commands = re.findall(r"kubectl create (secret generic|configmap) ([a-z-]+)", readme)
    made |= {("Secret" if kind.startswith("secret") else "ConfigMap", name) for kind, name in commands}
    for name, pod in PODS.items():
        wanted = {("ServiceAccount", pod["serviceAccountName"])} if "serviceAccountName" in pod else set()
        for volume in pod.get("volumes", []):
            wanted |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
            wanted |= {("Secret", volume["secret"]["secretName"])} if "secret" in volume else set()
        for container in pod["containers"]:
            for source in container.get("envFrom", []):
                wanted |= {("ConfigMap", source["configMapRef"]["name"])} if "configMapRef" in source else set()
                wanted |= {("Secret", source["secretRef"]["name"])} if "secretRef" in source else set()
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert mounts == {volume["name"] for volume in pod["volumes"]}, name
        assert wanted <= made, name


@pytest.mark.parametrize("name", PODS)
def test_pods_may_do_little(name: str) -> None:
    """No pod is root, writes to its image, or has a token of Kubernetes that it does not use."""
    pod, container = PODS[name], CONTAINERS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod.get("automountServiceAccountToken", True) == (pod.get("serviceAccountName") == "custody-worker")
    assert {"tmp"} <= {mount["name"] for mount in container["volumeMounts"]}
    assert set(container["resources"]["requests"]) == {"cpu", "memory"}


@pytest.mark.parametrize("name", RUNS)
def test_runs_have_the_time_and_memory_that_they_need(name: str) -> None:
    """A drain may finish segments and indexing before it is killed, and has the memory that sizing.md asks for."""
    needed = re.search(r"^\| a drain \|[^|]*?(\d+) GiB", (ROOT / "docs/sizing.md").read_text(), re.MULTILINE)
    assert needed
    assert RUNS[name]["terminationGracePeriodSeconds"] >= GRACE_SECONDS + INDEX_SECONDS + 10
    if "roll" not in name:
        assert int(CONTAINERS[name]["resources"]["limits"]["memory"].removesuffix("Gi")) > int(needed[1])


def taken(command: list[str]) -> None:
    """Check that a program of the image, or of Prefect's, has the command and its options."""
    match command:
        case ["custody", name, *options]:
            made = get_command(app)
            context = made.make_context("custody", [], resilient_parsing=True)
            inner = made.get_command(context, name)  # type: ignore[attr-defined]
            assert inner is not None, name
            inner.make_context(name, list(options))
        case ["dask", "scheduler" | "worker" as name, *options]:
            cli: Any = distributed.cli.dask_scheduler if name == "scheduler" else distributed.cli.dask_worker
            # Its certificates have to exist.
            cli.main.make_context(name, [re.sub("=/etc/dask/.*", f"={__file__}", option) for option in options])
        case ["prefect", *_]:
            functions = {"worker start": prefect.cli.worker.start, "work-pool create": prefect.cli.work_pool.create}
            source = inspect.getsource(functions[" ".join(command[1:3])])
            known = set(re.findall(r'"(--[a-z-]+)"', source))
            known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"^    (\w+):", source, re.MULTILINE)}
            names = {option.partition("=")[0] for option in command[3:] if option.startswith("--")}
            assert names <= known
        case _:
            pytest.fail(f"{command} is not known")


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_command_exists(name: str) -> None:
    """The image begins with `custody`, unless a manifest names another program."""
    container = CONTAINERS[name]
    program, arguments = container.get("command", []), container["args"]
    if program == ["sh", "-c"]:
        for part in arguments[0].split("&&"):
            taken(part.replace("exec ", "").split())
    elif program == ["env"]:
        # The image's own program would be `custody`.
        assert arguments == COMMAND
    elif container["image"].startswith("custody:"):
        taken([*(program or ["custody"]), *arguments])
    else:
        taken(arguments)


def test_images_are_the_pinned_ones() -> None:
    """The image of custody has the version of the project, and Prefect's worker the version that is pinned."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    images = {container["image"] for container in CONTAINERS.values()}
    (pinned,) = (each for each in project["tool"]["uv"]["constraint-dependencies"] if each.startswith("prefect=="))
    assert images == {
        f"custody:{project['project']['version']}",
        f"prefecthq/prefect:{pinned.removeprefix('prefect==')}-python3.11-kubernetes",
    }
    assert TEMPLATE["variables"]["properties"]["image"]["default"] in images
