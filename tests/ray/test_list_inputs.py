"""Listing in tasks: a list that is made on Ray is the one that a plain loop makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from source_files import listed, listed_rows, write_parquet, write_tar

from pipelines.sources import list_inputs
from retrieval.folder import Folder


@pytest.mark.ray
def test_with_ray_lists_are_the_same(tmp_path: Path, ray_session: None) -> None:
    for i in range(7):
        value: Any = str(i) if i == 5 else i
        paths = [f"{i}-{j}" for j in range(20)] + ["everywhere"]
        write_parquet(
            tmp_path / f"all/{i}.parquet", image=[b"x"] * 21, path=paths, value=[value] * 21, row_group_size=4
        )
    (tmp_path / "all/broken.parquet").write_bytes(b"PAR1, but no more")
    write_tar(tmp_path / "tars/a.tar", {"1.jpg": b"x"})
    (tmp_path / "tars/broken.tar").write_bytes(b"")
    reasons = {"all": ["same-path"] * 6 + ["broken-file"], "tars": ["broken-file"]}
    for name in ("all", "tars"):
        with_ray = list_inputs(str(tmp_path / name), Folder(tmp_path / f"{name}-with"))
        without, expected = listed(tmp_path / name, tmp_path / f"{name}-without")
        rows = listed_rows(tmp_path / f"{name}-with")
        assert rows == expected
        assert with_ray.digest == without.digest
        assert [row["reason"] for row in rows if row["reason"]] == reasons[name]
