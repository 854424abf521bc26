"""What doctor says of a node of a cluster, and how it puts those that are alike together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from cluster import fleet, node_checks
from cluster.doctor import Check
from cluster.fleet import Finding, grouped, read_profile, wrong
from cluster.node_checks import Probe, Software, compare, inspect, software
from cluster.nodes import Node, Use
from cluster.profile import Profile
from cluster.ray_env import NODE
from commands.doctor import print_findings
from retrieval.folder import Folder

GIB = 2**30


def node(temp: Path, gpus: float = 0, store: float = 0.1) -> Node:
    none = Use(0, 0)
    name = "node-1 (gpu)"
    return Node("ab", name, "10.0.0.1", "gpu", {}, Use(0, 2), Use(0, gpus), none, Use(0, store * GIB), str(temp))


def checks_of(found: list[Check]) -> dict[str, Check]:
    assert len({check.what for check in found}) == len(found)
    return {check.what: check for check in found}


def here() -> Software:
    return Software(*software()())


# Software


def test_this_process_is_like_itself() -> None:
    mine = here()
    found = checks_of(list(compare(Software(mine.versions, dict(NODE)), mine)))
    assert all(check.ok for check in found.values()), found
    assert mine.versions["ray"] in found["ray"].found
    assert "source" in found["mindseye"].found


def test_another_version_is_named_beside_the_one_here() -> None:
    mine = here()
    other = Software(mine.versions | {"torch": "1.0", "timm": "0.1", "mindseye": "not installed"}, dict(NODE))
    found = checks_of(list(compare(other, mine)))
    assert {what for what, check in found.items() if not check.ok} == {"torch", "mindseye", "other packages"}
    assert found["torch"].found == f"1.0; here {mine.versions['torch']}"
    assert found["other packages"].found == f"timm 0.1 (here {mine.versions['timm']})"


def test_variables_that_are_missing_or_otherwise_are_named() -> None:
    given = dict(NODE) | {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "0"}
    del given["RAY_USAGE_STATS_ENABLED"]
    check = checks_of(list(compare(Software(here().versions, given), here())))["environment"]
    assert not check.ok
    assert check.found == "RAY_USAGE_STATS_ENABLED is not set, not 0; RAY_SERVE_THROUGHPUT_OPTIMIZED is 0, not 1"


def test_a_node_s_secrets_stay_on_it() -> None:
    assert set(here().environ) <= set(NODE)


def test_a_node_without_mindseye_can_be_asked_for_its_software(tmp_path: Path) -> None:
    (tmp_path / "question").write_bytes(cloudpickle.dumps(software()))
    code = (
        "import pathlib, sys; from ray import cloudpickle\n"
        "print(cloudpickle.loads(pathlib.Path('question').read_bytes())()[0]['ray'], 'cluster' in sys.modules)"
    )
    command = [sys.executable, "-I", "-c", code]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [here().versions["ray"], "False"]


def test_the_source_tells_versions_apart_that_have_one_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mindseye.py").write_text("")
    (tmp_path / "cluster").mkdir()
    said = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "cluster" / "x.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mindseye", raising=False)
        said.append(here().versions["mindseye"])
    assert said[0] == said[2] != said[1]


# Machine


def test_gpus_that_ray_counts_and_pytorch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert checks_of(inspect(node(tmp_path), None, []))["GPUs"].ok
    check = checks_of(inspect(node(tmp_path, gpus=2), None, []))["GPUs"]
    assert not check.ok
    assert "sees none, and Ray counts 2" in check.found
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "H100")
    assert checks_of(inspect(node(tmp_path, gpus=2), None, []))["GPUs"] == Check("GPUs", True, "2 × H100")
    assert not checks_of(inspect(node(tmp_path), None, []))["GPUs"].ok


def test_shared_memory_that_is_smaller_than_the_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks, "SHARED_MEMORY", tmp_path)
    assert checks_of(inspect(node(tmp_path), None, []))["shared memory"].ok
    check = checks_of(inspect(node(tmp_path, store=10**6), None, []))["shared memory"]
    assert not check.ok
    assert "--shm-size" in check.remedy


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = node_checks.shutil.disk_usage(tmp_path)
    for total, free, ok in ((100, 50, True), (100, 1, False), (1000, 20, False), (20, 3, True)):
        made = usage._replace(total=total * GIB, free=free * GIB)
        monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda _, made=made: made)
        assert checks_of(inspect(node(tmp_path / "session"), None, []))["disk"].ok == ok, (total, free)


def test_round_figures_make_nodes_alike() -> None:
    assert node_checks._roughly(57.3 * GIB, True) == node_checks._roughly(99 * GIB, True) == "over 50 GiB"
    assert node_checks._roughly(1.26 * GIB, False) == "1.3 GiB"


def test_a_cache_of_shards_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINDSEYE_SHARD_CACHE", "/proc/shards")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert "cannot be written to" in checks_of(inspect(node(tmp_path), None, []))["shard cache"].found
    monkeypatch.setenv("MINDSEYE_SHARD_CACHE_BYTES", "2G")
    assert "2G" in checks_of(inspect(node(tmp_path), None, []))["shard cache"].found
    monkeypatch.setenv("MINDSEYE_SHARD_CACHE_BYTES", "0")
    assert checks_of(inspect(node(tmp_path), None, []))["shard cache"].ok


def test_authentication_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks_of(inspect(node(tmp_path), None, []))["authentication"].ok
    monkeypatch.setattr(node_checks.ray._raylet, "get_authentication_mode", lambda: None)
    assert not checks_of(inspect(node(tmp_path), None, []))["authentication"].ok


# Models


def test_models_are_found_without_being_loaded(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import safetensors.torch

    monkeypatch.setattr(safetensors.torch, "load_file", lambda *_: pytest.fail("weights are loaded"))
    found = checks_of(inspect(node(tmp_path), profile, []))
    assert all(found[role].ok for role in ("vlm", "vision", "generator"))
    assert profile.models.generator.uri in found["generator"].found


@pytest.mark.parametrize(
    ("role", "uri"),
    [
        ("vlm", "ViT-L-14/openai"),
        ("vlm", "ViT-L-14/nonsense"),
        ("vlm", "hf-hub:org/name"),
        ("vlm", "local-dir:/nowhere"),
        ("vision", "hf-hub:timm/vit_large_patch14_dinov2.lvd142m?img_size=224"),
        ("vision", "vit_base_patch14_dinov2.lvd142m"),
        ("vision", "nonsense"),
        ("generator", "org/name"),
        ("generator", "/nowhere"),
    ],
)
def test_models_that_are_nowhere_are_one_failed_check(
    role: str, uri: str, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is downloaded here: the hub is off, so what is not in the cache is nowhere."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    models = profile.models
    if role == "generator":
        models = models.model_copy(update={"generator": models.generator.model_copy(update={"uri": uri})})
    else:
        models = models.model_copy(update={role: uri})
    found = checks_of(inspect(node(tmp_path), profile.model_copy(update={"models": models}), []))
    assert {what for what in ("vlm", "vision", "generator") if not found[what].ok} == {role}
    assert uri in found[role].found


@pytest.mark.parametrize("what", ["aggregator", "composer"])
def test_a_trained_network_that_cannot_be_asked_for_is_one_failed_check(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def denied(self: Folder, name: str) -> bool:
        raise OSError("ACCESS_DENIED during HeadObject")

    monkeypatch.setattr(Folder, "exists", denied)
    models = profile.models.model_copy(update={what: str(tmp_path)})
    found = checks_of(inspect(node(tmp_path), profile.model_copy(update={"models": models}), []))
    assert {role for role in ("vlm", "vision", "generator", what) if not found[role].ok} == {what}
    assert "ACCESS_DENIED" in found[what].found


def test_a_model_in_the_cache_of_the_hub_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from cluster.model_files import find_model

    (tmp_path / "model.safetensors").write_bytes(b"")
    asked = []

    def download(repository: str, *, local_files_only: bool) -> str:
        asked.append((repository, local_files_only))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert str(tmp_path) in find_model("vlm", "ViT-L-14/openai")
    assert str(tmp_path) in find_model("vision", "vit_base_patch14_dinov2.lvd142m?img_size=224")
    assert asked == [("timm/vit_large_patch14_clip_224.openai", True), ("timm/vit_base_patch14_dinov2.lvd142m", True)]


# URIs


def test_a_bucket_is_read_and_written(bucket: str, tmp_path: Path) -> None:
    uri = f"s3://bucket/work?{bucket}"
    with fleet._probes([uri, uri]) as probes:
        assert len(probes) == 1
        found = checks_of(list(node_checks._reach(probes[0])))
    assert [check.ok for check in found.values()] == [True, True]
    assert Folder(uri).files() == []
    nowhere = checks_of(list(node_checks._reach(Probe(f"s3://other/work?{bucket}", None))))
    assert [check.ok for check in nowhere.values()] == [False]


def test_a_disk_that_is_not_shared_is_told_from_one_that_is(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    with fleet._probes([str(shared)]) as [probe]:
        assert all(check.ok for check in node_checks._reach(probe))
        [other] = node_checks._reach(Probe(str(tmp_path / "elsewhere"), probe.file))
        assert not other.ok
    assert list(tmp_path.iterdir()) == []  # nothing is left, and nothing was made on the other


# Together


def test_nodes_alike_are_one_line_and_those_that_differ_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = Check("torch", True, "2.15"), Check("torch", False, "1.0; here 2.15", "install the same")
    disk = [Check("disk", True, f"over {size} GiB") for size in (50, 20)]
    reports = {name: [good, disk[0]] for name in ("a", "b", "c", "d")} | {"e": [bad, disk[1]]}
    findings = grouped(reports)
    assert findings == [
        Finding(good, ["a", "b", "c", "d"]),
        Finding(bad, ["e"]),
        Finding(disk[0], ["a", "b", "c", "d"]),
        Finding(disk[1], ["e"]),
    ]
    assert wrong(findings) == {"e": 1}
    print_findings(findings, list(reports))
    assert capsys.readouterr().out.splitlines() == [
        "5 nodes: a, b, c, d, e",
        "ok   torch: 2.15  [4 nodes]",
        "FAIL torch: 1.0; here 2.15  [e]",
        "     install the same",
        "ok   disk: over 50 GiB  [4 nodes]",
        "ok   disk: over 20 GiB  [e]",
        "4 nodes: ok",
        "e: 1 thing to put right",
    ]


def test_a_wrong_profile_is_a_check_that_every_node_fails() -> None:
    read = read_profile("nothing")
    assert read.profile is None
    assert not read.check.ok
