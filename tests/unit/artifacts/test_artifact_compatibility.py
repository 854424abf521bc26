"""Artifacts of different models are not used together, nor is anything measured on labels that were learned."""

from __future__ import annotations

from pathlib import Path

import pytest
from errors import refused
from made_up_artifacts import publish_gallery
from tiny_artifacts import records

from retrieval.artifacts.compatibility import check_disjoint, check_made_by, check_same_models


def test_artifacts_of_the_same_models_go_together(tmp_path: Path) -> None:
    a, b = publish_gallery(tmp_path / "a"), publish_gallery(tmp_path / "b", rows=7)
    check_same_models(a, b, ["vlm", "vision"])


def test_the_refusal_names_role_artifacts_uris_and_fingerprints(tmp_path: Path) -> None:
    other = records(vlm="sha256:aa", vision="sha256:cc")
    a, b = publish_gallery(tmp_path / "a"), publish_gallery(tmp_path / "b", models=other)
    check_same_models(a, b, ["vlm"])
    with refused("other-model", "vision") as error:
        check_same_models(a, b, ["vlm", "vision"])
    message = str(error.value)
    for part in (a.uri, b.uri, "local-dir:vision", "sha256:bb", "sha256:cc"):
        assert part in message
    assert "sha256:aa" not in message


@pytest.mark.parametrize("turn", [1, -1])
def test_a_manifest_that_is_silent_about_a_model_is_refused(tmp_path: Path, turn: int) -> None:
    silent = publish_gallery(tmp_path / "silent", models=records(vlm="sha256:aa"))
    pair = [publish_gallery(tmp_path / "full"), silent][::turn]
    with refused("unknown-model", "vision") as error:
        check_same_models(pair[0], pair[1], ["vlm", "vision"])
    assert silent.uri in str(error.value)


def test_an_artifact_of_another_model_than_the_one_at_hand_is_refused(tmp_path: Path) -> None:
    gallery = publish_gallery(tmp_path)
    check_made_by(gallery, "vision", "local-dir:vision", "sha256:bb")
    with refused("other-model", "vision") as error:
        check_made_by(gallery, "vision", "local-dir:other", "sha256:cc")
    for fact in (gallery.uri, "local-dir:vision", "local-dir:other", "sha256:bb", "sha256:cc"):
        assert fact in str(error.value)
    with refused("unknown-model", "generator"):
        check_made_by(gallery, "generator", "models/generator", "sha256:gg")


def test_labels_that_were_learned_are_not_measured_on() -> None:
    check_disjoint(["a", "b"], {"c"}, "here")
    with refused("overlap", "label") as error:
        check_disjoint(["a", "b", "c"], {"c", "a", "d"}, "s3://there")
    assert "2 labels" in str(error.value)
    assert "s3://there: a, c." in str(error.value)
