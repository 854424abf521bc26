"""The cluster launcher's files: valid for Ray, the same but for the cloud, and of the pools that profiles ask for."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.profile import PROFILES
from cluster.ray_env import NODE

ROOT = Path(__file__).parents[3]
AWS, GCP = ROOT / "ray_cluster.yaml", ROOT / "cluster/ray_cluster_gcp.yaml"
POOLS = {"head", "cpu", "gpu", "index"}


def content(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.name)
def test_ray_takes_it(file: Path) -> None:
    config = prepare_config(content(file))
    validate_config(config)
    types = config["available_node_types"]
    assert set(types) == POOLS
    assert all(given["labels"] == {"mindseye/pool": name} for name, given in types.items())
    assert all(given["min_workers"] <= 1 for given in types.values())
    assert {name for name, given in types.items() if given["resources"].get("GPU")} == {"gpu"}
    assert types["head"]["resources"] == {"CPU": 0}


def test_the_variant_differs_in_provider_and_machines_alone() -> None:
    aws, gcp = content(AWS), content(GCP)
    for config in (aws, gcp):
        for given in config["available_node_types"].values():
            del given["node_config"]
        del config["provider"], config["head_setup_commands"]
    assert aws == gcp


@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.name)
def test_what_is_mounted_is_in_a_checkout_and_the_token_is_not(file: Path) -> None:
    mounts = content(file)["file_mounts"]
    made = {"dist", "~/.ray/auth_token"}
    assert set(mounts.values()) - made == {"constraints.txt", "cluster/install.sh", "cluster/node.env"}
    assert all((ROOT / given).is_file() for given in set(mounts.values()) - made)
    assert mounts["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in content(file)["setup_commands"])


@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.name)
def test_nothing_of_ray_listens_to_the_world(file: Path) -> None:
    config = content(file)
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert "--dashboard-host=127.0.0.1" in " ".join(starts)
    assert "IpPermissions" not in config["provider"].get("security_group", {})  # SSH and the nodes, by default
    assert all("object-spilling-directory" in start for start in starts if "ray start" in start)


@pytest.mark.parametrize("bashrc", [None, "", "case $- in *i*) ;; *) return;; esac\n"], ids=["none", "empty", "usual"])
def test_shells_of_a_node_have_its_environment(bashrc: str | None, tmp_path: Path) -> None:
    """The command that sets the environment up is run twice, in a home of its own, with a venv that is made already."""
    config = content(AWS)
    [set_up] = [command for command in config["setup_commands"] if "node.env" in command]
    assert set_up in config["available_node_types"]["gpu"]["worker_setup_commands"]
    (tmp_path / "mindseye" / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "mindseye" / "node.env").write_text((ROOT / "cluster/node.env").read_text())
    if bashrc is not None:
        (tmp_path / ".bashrc").write_text(bashrc)
    script = set_up.replace("python3 -m venv ~/mindseye/venv", "true")
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for _ in range(2):
        subprocess.run(["bash", "-c", script], env=environment, check=True)
    assert (tmp_path / ".bashrc").read_text().count("mindseye/profile") == 1
    shell = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; env -0"], env=environment, capture_output=True, text=True, check=True
    )
    found = dict(entry.split("=", 1) for entry in shell.stdout.split("\0") if "=" in entry)
    assert found.items() >= NODE.items()
    assert found["PATH"].startswith(f"{tmp_path}/mindseye/venv/bin:")


def labels(settings: Any) -> Iterator[tuple[str, str]]:
    """Yield every label that a part of a profile asks for, in ``labels`` and in what ``fallback`` has."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if name == "labels":
                yield from value.items()
            elif name == "fallback":
                yield from (item for step in value for item in step.items())
            else:
                yield from labels(value)


def test_labels_that_profiles_ask_for_are_found() -> None:
    asks = {"serve": {"shards": {"labels": {"a": "b"}, "fallback": [{"c": "d"}, {}]}}, "embed": {"labels": {"e": "f"}}}
    assert list(labels(asks)) == [("a", "b"), ("c", "d"), ("e", "f")]


@pytest.mark.parametrize("profile", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.name)
@pytest.mark.parametrize("file", [AWS, GCP], ids=lambda file: file.name)
def test_every_label_of_a_shipped_profile_is_one_of_a_node(profile: Path, file: Path) -> None:
    there = [given["labels"] for given in content(file)["available_node_types"].values()]
    for key, value in labels(content(profile)):
        assert any(given.get(key) == value for given in there), f"{profile.name} asks for {key}: {value}"


def test_install_takes_a_variant_and_nothing_else() -> None:
    script = ROOT / "cluster/install.sh"
    done = subprocess.run(["sh", script, "tpu", "."], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "tpu is neither gpu nor cpu" in done.stderr
    used = {match for file in (AWS, GCP) for match in re.findall(r"install\.sh (\w+)", file.read_text())}
    assert used == {"cpu", "gpu"}


@pytest.mark.parametrize(("variant", "extras", "last"), [("cpu", "redis", None), ("gpu", "gpu,redis", "faiss-gpu")])
def test_install_gives_pip_the_extras_and_ends_with_one_faiss(
    variant: str, extras: str, last: str | None, tmp_path: Path
) -> None:
    """A pip that only writes down what it is asked for stands in for the real one, which takes minutes."""
    (tmp_path / "pip").write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\n')
    (tmp_path / "pip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    subprocess.run(["sh", ROOT / "cluster/install.sh", variant, "m.whl"], env=environment, cwd=ROOT, check=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == f"install --constraint constraints.txt m.whl[{extras}]"
    if last is None:
        assert len(asked) == 2
    else:
        assert asked[-2] == "uninstall --yes faiss-cpu faiss-gpu"
        assert asked[-1].split()[-1] == last
