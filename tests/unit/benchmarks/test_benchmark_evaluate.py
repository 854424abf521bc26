"""The benchmark of exact evaluation: what a folder that was kept may be used for again."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks.evaluate import Measured, compare, in_one_process, plain
from retrieval.folder import Folder


def test_a_folder_that_was_kept_is_of_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = argparse.Namespace(rows=60, queries=5, labels=5, on_ray=False, by_ids=False, fused=False, folder=tmp_path)
    for way in (in_one_process, plain):
        measured = Measured(seconds=1, grown=1, peak=1, worker=0, ap={"fused": [0.5]})
        (tmp_path / f"{way.__name__}.json").write_text(measured.model_dump_json())
    compare(Folder(tmp_path), given)
    (tmp_path / "queries/manifest.json").unlink()  # as if interrupted before it was there
    compare(Folder(tmp_path), given)
    assert (tmp_path / "queries/manifest.json").exists()
    assert capsys.readouterr().out.count("largest difference of an AP 0.0e+00") == 2
    given.rows = 70
    with pytest.raises(SystemExit, match="name another folder"):
        compare(Folder(tmp_path), given)
