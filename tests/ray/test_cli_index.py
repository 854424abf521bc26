"""``mindseye index`` on the Ray of the test run; its sub-commands are tested in test_index_command.py."""

from __future__ import annotations

from pathlib import Path

from command_line import Run

from demo.grammar import categories
from demo.world import render


def test_a_target_is_built_grown_and_verified(run: Run, profile_file: Path, tmp_path: Path, ray_session: None) -> None:
    images, target, with_profile = tmp_path / "images", tmp_path / "target", ("--profile", profile_file)
    (images / "class").mkdir(parents=True)
    for i in range(6):
        render(categories()[i], i).save(images / f"class/{i}.png")
    (images / "broken.jpg").write_bytes(b"")
    said = run("index", images, target, *with_profile)
    assert said.code == 0, said.err
    assert "7 inputs, 6 images embedded, 1 rejected (empty: 1" in said.out
    assert "index version 000001: 6 rows, 1 shards, Flat" in said.out
    render(categories()[7], 7).save(images / "class/new.png")
    said = run("index", "add", images, target, *with_profile)
    assert said.code == 0, said.err
    assert "index version 000002: 7 rows, 2 shards" in said.out
    said = run("index", "verify", target, *with_profile, "--sample", "4")
    assert (said.code, said.out.count("ok  "), "FAIL" in said.out) == (0, 5, False)
