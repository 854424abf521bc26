"""``mindseye queries`` and ``mindseye evaluate``, one after the other, without Ray."""

from __future__ import annotations

from pathlib import Path

from command_line import Run
from tiny_artifacts import Collection

from retrieval.artifacts import QuerySet


def test_a_vocabulary_is_imagined_and_measured(
    run: Run, collection: Collection, profile_file: Path, tmp_path: Path
) -> None:
    row = next(collection.gallery.tables(["id", "label"])).slice(0, 1).to_pylist()[0]
    (tmp_path / "names.csv").write_text(
        "name,description,label,relevant\n"
        f"{row['label']},a description,,\nnothing,,no such label,\na row,,,{row['id']} gone\n"
    )
    queries, report = tmp_path / "my queries", tmp_path / "my report"
    options = ("--profile", profile_file, "--images", 1, "--seed", 3, "--address", "none")
    said = run("queries", tmp_path / "names.csv", queries, *options)
    assert said.code == 0
    assert "5 queries, 1 images each" in said.out
    assert said.out.index(f"made:\n  {queries}\n") < said.out.index(f"mindseye evaluate GALLERY '{queries}'")
    manifest = QuerySet.open(queries).manifest
    assert (manifest.queries, manifest.images, manifest.seed) == (5, 1, 3)

    said = run("evaluate", collection.gallery.uri, queries, report, "--weight", 0.25, "--address", "none")
    assert said.code == 0
    assert "fused, λ = 0.25" in said.out
    assert "1 labels have no image in the gallery and were not measured: no such label" in said.out
    assert "1 relevant rows are not in the gallery and count as never found: gone" in said.out
    made = [f"  {report}/{name}\n" for name in ("results.parquet", "summary.json", "gains.png", "contact-sheet.png")]
    assert f"made:\n{''.join(made)}next:\n  look at '{report}/contact-sheet.png'\n" in said.out
    assert {file.name for file in report.iterdir()} == {line.strip().rsplit("/", 1)[1] for line in made}
