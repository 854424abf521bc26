"""cluster/kubernetes: rendered as an operator renders it, and checked as the API server and KubeRay would, offline."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from cluster.profile import load_profile
from cluster.ray_env import NODE, NODE_ENV
from commands.app import app
from serving.app import ServeArgs

ROOT = Path(__file__).parents[3]
HERE = ROOT / "cluster/kubernetes"
CRDS = ROOT.parent / "shared/kuberay-crds"
JOBS = sorted((HERE / "jobs").glob("*.yaml"))
POOLS = {"cpu": {"head", "cpu", "index"}, "gpu": {"head", "cpu", "index", "gpu"}}
Manifest = dict[str, Any]


@cache
def rendered(folder: Path) -> list[Manifest]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which renders kustomize's overlays, is not installed")
    command = ["kubectl", "kustomize", "--load-restrictor", "LoadRestrictionsNone", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(params=sorted(POOLS))
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifests(overlay: str) -> list[Manifest]:
    return rendered(HERE / "overlays" / overlay)


def one(manifests: list[Manifest], kind: str, name: str | None = None) -> Manifest:
    [found] = [each for each in manifests if each["kind"] == kind and name in (None, each["metadata"]["name"])]
    return found


@cache
def schema(kind: str) -> dict[str, Any]:
    """Return KubeRay's schema of a kind, closed: like the API server, it refuses fields that it does not know."""
    file = CRDS / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        pytest.skip(f"KubeRay's schemas are not at {CRDS}")
    with file.open(encoding="utf-8") as stream:
        definition = yaml.load(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [version] = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]
    found["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    close(found)
    return found


def close(node: Any) -> None:
    if isinstance(node, dict):
        if "properties" in node and not node.get("x-kubernetes-preserve-unknown-fields"):
            node.setdefault("additionalProperties", False)
        for each in node.values():
            close(each)
    elif isinstance(node, list):
        for each in node:
            close(each)


def check(manifest: Manifest) -> None:
    jsonschema.Draft4Validator(schema(manifest["kind"])).validate(manifest)


def test_what_is_rays_fits_kuberays_schemas(manifests: list[Manifest]) -> None:
    ours = [each for each in manifests if each["apiVersion"] == "ray.io/v1"]
    assert {each["kind"] for each in ours} == {"RayCluster", "RayService"}
    for manifest in ours:
        check(manifest)


def test_a_field_that_kuberay_does_not_know_is_refused() -> None:
    job = yaml.safe_load(JOBS[0].read_text())
    job["spec"]["entrypoints"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="entrypoints"):
        check(job)


def test_what_is_kubernetes_own_fits_its_schemas(manifests: list[Manifest]) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    own = [each for each in manifests if not each["apiVersion"].startswith("ray.io/")]
    assert {each["kind"] for each in own} == {"ConfigMap", "Namespace", "NetworkPolicy", "Service", "StatefulSet"}
    for manifest in own:
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def test_everything_is_in_one_namespace(manifests: list[Manifest]) -> None:
    rest = [each for each in manifests if each["kind"] != "Namespace"]
    jobs = [yaml.safe_load(file.read_text()) for file in JOBS]
    assert {each["metadata"]["namespace"] for each in rest + jobs} == {"mindseye"}


# Clusters


def specs(manifests: list[Manifest]) -> list[Manifest]:
    return [one(manifests, "RayCluster")["spec"], one(manifests, "RayService")["spec"]["rayClusterConfig"]]


def test_the_service_has_the_nodes_of_the_cluster_and_survives_its_head(manifests: list[Manifest]) -> None:
    cluster, service = specs(manifests)
    redis = service.pop("gcsFaultToleranceOptions")
    assert service == cluster
    assert redis["redisAddress"] == "mindseye-redis:6379"
    assert "value" not in redis["redisPassword"]


def test_rays_autoscaler_takes_them_with_the_labels_of_the_launchers_nodes(
    manifests: list[Manifest], overlay: str
) -> None:
    launcher = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())["available_node_types"]
    for spec in specs(manifests):
        metadata = {"name": "mindseye", "namespace": "mindseye"}
        types = _derive_autoscaling_config_from_ray_cr({"metadata": metadata, "spec": spec})["available_node_types"]
        found = {name.replace("headgroup", "head"): given for name, given in types.items()}
        assert set(found) == POOLS[overlay]
        for name, given in found.items():
            assert given["labels"] == launcher[name]["labels"]
            assert given["resources"]["CPU"] == launcher[name]["resources"]["CPU"]
            assert given["resources"].get("GPU", 0) == launcher[name]["resources"].get("GPU", 0)
            assert given["min_workers"] == 0


def test_ray_is_the_pinned_one_and_asks_for_its_token(manifests: list[Manifest]) -> None:
    [pinned] = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    for spec in specs(manifests):
        assert spec["rayVersion"] == pinned
        assert spec["authOptions"] == {"mode": "token"}


def templates(spec: Manifest) -> Iterator[Manifest]:
    yield spec["headGroupSpec"]["template"]["spec"]
    yield from (group["template"]["spec"] for group in spec["workerGroupSpecs"])


def test_every_container_of_ray_has_the_environment_of_a_node(manifests: list[Manifest]) -> None:
    [settings] = [each for each in manifests if each["metadata"]["name"].startswith("node-env-")]
    assert settings["data"] == NODE
    reference = {"configMapRef": {"name": settings["metadata"]["name"]}}
    for spec in specs(manifests):
        assert reference in spec["autoscalerOptions"]["envFrom"]
        for pod in templates(spec):
            assert reference in pod["containers"][0]["envFrom"]


def test_no_container_is_root_or_without_bounds(manifests: list[Manifest], overlay: str) -> None:
    pods = [pod for spec in specs(manifests) for pod in templates(spec)]
    for pod in [*pods, one(manifests, "StatefulSet")["spec"]["template"]["spec"]]:
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
            assert container["resources"]["limits"] == container["resources"]["requests"]
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
        assert {volume["name"] for volume in pod.get("volumes", [])} <= mounted
    assert {pod["containers"][0]["image"] for pod in pods} == {f"mindseye:{overlay}"}


def secrets(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("secretKeyRef", "secretRef"):
                yield value["name"]
            elif name == "secretName":
                yield value
            else:
                yield from secrets(value)
    elif isinstance(node, list):
        for each in node:
            yield from secrets(each)


def test_secrets_are_named_and_never_contained(manifests: list[Manifest]) -> None:
    assert "Secret" not in {each["kind"] for each in manifests}
    told = set(re.findall(r"create secret generic (\S+)", (ROOT / "docs/kubernetes.md").read_text()))
    assert set(secrets(manifests)) == told


def test_ports_of_the_network_policy_are_ports_of_containers(manifests: list[Manifest]) -> None:
    open_ports = {
        port["port"]
        for rule in one(manifests, "NetworkPolicy", "ray")["spec"]["ingress"]
        for port in rule.get("ports", [])
    }
    head = specs(manifests)[0]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert open_ports <= {port["containerPort"] for port in head["ports"]}
    assert 6379 not in open_ports  # of all that is not Ray itself


# The service, jobs, monitoring


def test_what_is_served_is_serving_config_but_for_where_and_what(manifests: list[Manifest], overlay: str) -> None:
    content = yaml.safe_load(one(manifests, "RayService")["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(content)
    # Serve ignores keys that it does not know.
    assert set(content) <= set(ServeDeploySchema.model_fields)
    assert set(content["applications"][0]) <= set(ServeApplicationSchema.model_fields)
    plain = yaml.safe_load((ROOT / "serving/config.yaml").read_text())
    assert schema.http_options.host == "0.0.0.0"
    args = ServeArgs.model_validate(content["applications"][0].pop("args"))
    assert args.load_profile().serve.keys_file
    assert load_profile({"cpu": "tiny", "gpu": "fast"}[overlay]).name == args.load_profile().name
    assert args.store == "redis://mindseye-redis:6379/1"
    del content["http_options"]["host"], plain["http_options"]["host"], plain["applications"][0]["args"]
    assert content == plain


@pytest.mark.parametrize("file", JOBS, ids=lambda file: file.stem)
def test_a_job_is_a_command_of_ours_on_the_cluster(file: Path) -> None:
    job = yaml.safe_load(file.read_text())
    program, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert program == "mindseye"
    assert arguments[0] == file.stem
    app.parse_args(arguments, exit_on_error=False, print_error=False)
    cluster = yaml.safe_load((HERE / "base/cluster.yaml").read_text())
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    check(job)


def test_the_three_jobs_are_there() -> None:
    assert {file.stem for file in JOBS} == {"index", "queries", "train"}


def test_prometheus_asks_for_a_port_that_pods_have(manifests: list[Manifest], tmp_path: Path) -> None:
    overlay, monitoring = (tmp_path / name for name in ("overlay", "monitoring"))
    shutil.copytree(HERE / "components/monitoring", monitoring)
    overlay.mkdir()
    wanted = {"kind": "Kustomization", "components": ["../monitoring"]}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    monitor = one(rendered(overlay), "PodMonitor")
    ports = specs(manifests)[0]["headGroupSpec"]["template"]["spec"]["containers"][0]["ports"]
    assert {point["port"] for point in monitor["spec"]["podMetricsEndpoints"]} <= {port["name"] for port in ports}
    assert monitor["metadata"]["namespace"] == "mindseye"


# The image


def instructions(name: str) -> list[str]:
    text = (HERE / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name} ")]


def test_the_image_is_built_from_every_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    packages = {pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]}
    copied = {source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]}
    assert packages <= copied
    assert all((ROOT / source).exists() for source in copied)
    sent = (HERE / "Dockerfile.dockerignore").read_text().splitlines()
    assert {f"!{source.split('/')[0]}" for source in copied} <= set(sent)


@pytest.mark.parametrize(("given", "found"), [({}, "1"), ({"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}, "0")])
def test_a_container_starts_with_the_environment_of_a_node(given: dict[str, str], found: str) -> None:
    [entrypoint] = instructions("ENTRYPOINT")
    command = [part.replace("/etc/mindseye/node.env", str(NODE_ENV)) for part in json.loads(entrypoint)]
    done = subprocess.run(
        [*command, "env", "-0"], env={"A": "b 'c'"} | given, capture_output=True, text=True, check=True
    )
    there = dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)
    assert there["A"] == "b 'c'"
    assert there["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == found
    assert NODE.keys() <= there.keys()
