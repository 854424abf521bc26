"""Encoders of a profile are loaded once; whether there is room for them is checked each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.profile import Profile
from pipelines import encoders
from pipelines.encoders import _key, describe_encoders


@pytest.mark.usefixtures("in_process")
def test_room_is_checked_for_each_stage_though_the_encoders_are_known(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[float] = []
    monkeypatch.setattr(encoders, "check_room", lambda demand: checked.append(demand.stage.cpus))
    larger = profile.model_copy(update={"embed": profile.embed.model_copy(update={"cpus": 64})})
    assert describe_encoders(profile) is describe_encoders(larger)
    assert checked == [profile.embed.cpus, 64]


def test_other_weights_in_a_folder_are_not_taken_for_those_that_are_cached(profile: Profile, tmp_path: Path) -> None:
    models = profile.models.model_copy(update={"vision": f"local-dir:{tmp_path}?img_size=32"})
    with_size = profile.model_copy(update={"models": models})
    before = _key(with_size)
    assert _key(with_size) == before
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert _key(with_size) != before
