"""``mindseye index`` and its sub-commands, in the order in which an operator might need them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from command_line import Run, one_line_error

from cluster.hold import hold
from demo.grammar import categories
from demo.world import render
from retrieval.artifacts import Index
from retrieval.folder import Folder

SUBCOMMANDS = ("add", "remove", "compact", "duplicates", "list", "prune", "verify", "status", "failed")


def draw(file: Path, number: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    render(categories()[number % 40], number).save(file)


def test_a_target_from_its_first_image_to_its_last_check(run: Run, profile_file: Path, tmp_path: Path) -> None:
    images, target = tmp_path / "images", tmp_path / "target"
    with_profile = ("--profile", profile_file, "--address", "none")
    for i in range(10):
        draw(images / f"class {i % 2}/{i}.png", i)
    shutil.copyfile(images / "class 0/0.png", images / "class 1/again.png")
    (images / "broken.jpg").write_bytes(b"")

    said = run("index", images, target, *with_profile, "--factory", "IVF9,Nonsense")
    one_line_error(said, "index factory 'IVF9,Nonsense' does not suit")
    assert not (target / "gallery").exists()

    said = run("index", images, target, *with_profile, "--dedup", "1")
    assert said.code == 0, said.err
    for part in (
        "12 inputs, 11 images embedded, 1 rejected (empty: 1; mindseye index failed lists them)",
        "1 with the bytes of another",
        "1 duplicates dropped",
        "index version 000002: 10 rows, 1 removed, 1 shards, Flat",
        "recall@100 against exact search, by λ: 0.0: 1.0",
        f"{target}/index/000002",
    ):
        assert part in said.out
    assert re.search(r"rows/s; workers spent their time on: .*decode \d+%, embed \d+%", said.out)

    said = run("index", "failed", target)
    assert said.out == "1 empty\n  broken.jpg: the file is empty (0 bytes)\n"
    assert "no job runs here\npublished: index version 000001, 11 rows\n" in run("index", "status", target).out

    draw(images / "class 2/new.png", 20)
    said = run("index", "add", images, target, *with_profile)
    assert said.code == 0, said.err
    assert "1 inputs, 1 images embedded, 0 rejected" in said.out
    assert "12 left out, known and unchanged" in said.out
    assert "index version 000003: 11 rows, 1 removed, 2 shards" in said.out

    said = run("index", "remove", target, *with_profile, "--label", "class 2", "--id", "nobody")
    assert said.code == 0, said.err
    assert "1 rows removed\nno row has nobody\n" in said.out
    said = run("index", "duplicates", target, *with_profile)
    assert "0 of 10 images are duplicates" in said.out

    said = run("index", "compact", target, *with_profile, "--shards", "2", "--memory-per-shard", "1G")
    assert "index version 000005: 10 rows, 2 shards, Flat" in said.out
    listed = run("index", "list", target).out
    assert [line.split()[1] for line in listed.splitlines() if "published" in line] == [
        f"00000{i}" for i in range(1, 6)
    ]
    said = run("index", "verify", target, *with_profile, "--sample", "4")
    assert (said.code, said.out.count("ok  "), "FAIL" in said.out) == (0, 5, False)
    said = run("index", "prune", target, "--keep", "1")
    assert "deleted index/000001" in said.out
    assert Index.open(target / "index").version == "000005"

    (target / "index/000005/shard-00000/rows.parquet").write_bytes(b"damaged")
    said = run("index", "verify", target, *with_profile, "--sample", "0")
    assert said.code == 1
    assert "FAIL 000005/shard-00000, 5 rows: " in said.out

    # The same command once more: nothing is embedded again, and the index is built again beside the damaged version.
    said = run("index", images, target, *with_profile)
    assert said.code == 0, said.err
    assert "index version 000006: 10 rows" in said.out


@pytest.mark.parametrize("command", SUBCOMMANDS)
def test_each_sub_command_explains_itself(run: Run, command: str) -> None:
    said = run("index", command, "--help")
    assert said.code == 0
    assert f"Usage: mindseye index {command}" in said.out
    assert "TARGET" in said.out


def test_a_target_that_another_job_holds_is_left_alone(run: Run, profile_file: Path, tmp_path: Path) -> None:
    draw(tmp_path / "images/a.png", 0)
    target = tmp_path / "target"
    with hold(Folder(target), "another"):
        said = run("index", tmp_path / "images", target, "--profile", profile_file)
        one_line_error(said, "is locked by another of process", "--take-over")
        assert "running: another of process" in run("index", "status", target).out
    assert not (target / "gallery").exists()


def test_what_is_missing_or_senseless_is_one_message(run: Run, profile_file: Path, tmp_path: Path) -> None:
    with_profile = ("--profile", profile_file)
    one_line_error(run("index", "verify", tmp_path, *with_profile), "there is no gallery at")
    for command in ("status", "failed", "list", "prune", "remove", "compact"):
        one_line_error(run("index", command, tmp_path), f"there is no gallery and no index at {tmp_path}")
    one_line_error(run("index", "add", tmp_path, tmp_path), f"there is no gallery and no index at {tmp_path}")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "gallery").mkdir()
    one_line_error(run("index", "remove", tmp_path, *with_profile), "give at least one id, path or label")
    one_line_error(run("index", "prune", tmp_path), "there is no gallery at")
    assert run("index", "failed", tmp_path).out == "nothing was rejected\n"
    said = run("index", tmp_path, tmp_path / "t", "--profile", profile_file, "--memory-per-shard", "much")
    one_line_error(said, "memory_per_shard must be a size such as 500M or 2G, not 'much'")
    said = run("index", "s3://key:secret@bucket/x", tmp_path / "t", "--profile", profile_file)
    one_line_error(said, "has a key or password in it", "AWS_ACCESS_KEY_ID")
    assert "secret" not in said.err.replace("AWS_SECRET", "")
