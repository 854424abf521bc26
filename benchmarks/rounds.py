"""What rounds of marking and editing are worth, on the demo's world (docs/evidence.md).

    make demo                                        # leaves the gallery that this takes
    .venv/bin/python -m benchmarks.rounds [--demo demo-out] [--fit] [--plot docs/rounds.png]

A simulated user (``pipelines.rounds``) begins with a description, a name, or a name that is wrong in one attribute, and
marks rows, edits the text to the right name in the second round, or does both. ``--fit`` first renders photos of
fitting categories and tries weights and numbers of marks on them; the figures are of unseen categories.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.evidence import LAM, Words
from cluster.loading import load_query_encoder, record_of
from cluster.session import session
from demo.grammar import Category, describe
from demo.world import render, split
from pipelines.plots import plot_rounds
from pipelines.rounds import SYSTEMS, Opening, Rounds, User, simulate
from pipelines.truth import Truth
from retrieval.artifacts import Gallery
from retrieval.artifacts.columns import fixed_size_list
from retrieval.evidence import Encoded
from retrieval.query import QueryEncoder

ROUNDS = 3
FITTING, EACH = 72, 72
NOISE = 0.1
MARKS = ((4, 1), (3, 2), (2, 3), (1, 4))
"""How many picks and drops in a round; after three rounds they are 15, as many as a query of a text has room for."""
WEIGHTS = [(picked, dropped) for picked in (0.5, 1.0, 2.0) for dropped in (0.0, 0.5, 1.0)]
DESCRIPTION, NAME, WRONG, EDITED = "description", "name", "wrong name", "wrong name, edited"


def fitting_gallery(folder: Path, encoder: QueryEncoder, categories: Sequence[Category]) -> Gallery:
    """Render and embed photos of categories; no other command uses these photos."""

    def parts() -> list[pa.Table]:
        tables = []
        for number, category in enumerate(categories):
            vlm, vision = encoder.picture_vectors([render(category, 200_000 + i) for i in range(EACH)])
            names = [f"{number:03d}-{i:03d}" for i in range(EACH)]
            columns = {"id": names, "path": names, "label": [category.name] * EACH}
            sizes = {side: pa.array([64] * EACH, pa.int32()) for side in ("width", "height")}
            vectors = {
                "vlm": fixed_size_list(vlm.astype(np.float16)),
                "vision": fixed_size_list(vision.astype(np.float16)),
            }
            tables.append(pa.table(columns | sizes | vectors))
        return [pa.concat_tables(tables[i : i + 8]) for i in range(0, len(tables), 8)]

    models = {"vlm": record_of(encoder.vlm), "vision": record_of(encoder.vision)}
    return Gallery.of_tables(folder, parts(), source="rendered", models=models)  # type: ignore[arg-type]


def openings(categories: Sequence[Category], words: Words, kinds: Sequence[str]) -> list[Opening]:
    """The searches that users begin with: of each category, one of each kind."""
    rng, made = np.random.default_rng(0), []
    wrong = [wrong_name(category, rng) for category in categories]
    texts = {
        DESCRIPTION: [describe(category, "evaluation", rng) for category in categories],
        NAME: [category.name for category in categories],
        WRONG: wrong,
        EDITED: wrong,
    }
    words.of(*{text for kind in (NAME, *kinds) for text in texts[kind]})
    for kind in kinds:
        for category, text in zip(categories, texts[kind], strict=True):
            given, right = (tuple(half[0] for half in words.of(one)) for one in (text, category.name))
            encoded = Encoded(np.ones(1), given[0][None], given[1][None])
            edits = [given, right] if kind == EDITED else []
            made.append(Opening(f"{kind}: {category.name}", text, kind, encoded, Truth(category.name), edits))
    return made


def wrong_name(category: Category, rng: np.random.Generator) -> str:
    """The name with one attribute of another category."""
    attributes = category.name.split()
    place = int(rng.integers(len(attributes)))
    others = sorted({other.name.split()[place] for other in split("models")} - {attributes[place]})
    attributes[place] = others[rng.integers(len(others))]
    return " ".join(attributes)


def line(rounds: Rounds, kind: str) -> str:
    numbers = range(rounds.rounds + 1)
    means, first = (
        " ".join(f"{mean.mean:.3f}" for number in numbers if (mean := rounds.mean(kind, number, system)))
        for system in SYSTEMS
    )
    hits, shown = (" ".join(f"{share:.3f}" for share in of(kind)) for of in (rounds.hits, rounds.shown))
    gain = rounds.gain(kind, rounds.rounds)
    assert gain
    return (
        f"| {kind} | {means} | {first} | {gain.mean:+.3f} [{gain.low:.3f}, {gain.high:.3f}] | {hits} | {shown} |"
        f" {rounds.best_log_rank(kind):.3f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    parser.add_argument("--fit", action="store_true", help="try weights and numbers of marks on fitting categories")
    parser.add_argument("--plot", type=Path, help="draw hits at 10 and mAP by round into this file")
    arguments = parser.parse_args()
    encoder = load_query_encoder("tiny")
    words = Words(encoder)
    with session("none"), tempfile.TemporaryDirectory() as scratch:
        if arguments.fit:
            categories = split("fitting")[:FITTING]
            gallery = fitting_gallery(Path(scratch), encoder, categories)
            asked = openings(categories, words, (DESCRIPTION, WRONG))
            print(
                "fitting: | picks | drops | weight of picked | of dropped | gain in round 3: description | wrong name |"
            )
            for (picks, drops), weights in product(MARKS, WEIGHTS):
                user = User(picks=picks, drops=drops, weights=weights)
                rounds = simulate(gallery, asked, ROUNDS, weight=LAM, user=user)
                gains = " | ".join(f"{gain.mean:+.3f}" for kind in rounds.kinds if (gain := rounds.gain(kind, ROUNDS)))
                print(f"| {picks} | {drops} | {weights[0]:g} | {weights[1]:g} | {gains} |", flush=True)
        unseen = Gallery.open(arguments.demo / "gallery")
        asked = openings(split("unseen"), words, (DESCRIPTION, NAME, WRONG, EDITED))
        print("unseen: | begins with | mAP by round | first search | gain | hits@10 | relevant of those shown | BRI |")
        rounds = simulate(unseen, asked, ROUNDS, weight=LAM)
        for kind in rounds.kinds:
            print(line(rounds, kind), flush=True)
        if arguments.plot:
            arguments.plot.write_bytes(plot_rounds(rounds))
        edited = [each for each in asked if each.kind == EDITED]
        others = {"edits without marks": (edited, User(picks=0, drops=0))}
        of_descriptions = [each for each in asked if each.kind == DESCRIPTION]
        others[f"descriptions, {NOISE:.0%} of judgements wrong"] = (of_descriptions, User(noise=NOISE))
        for title, (some, user) in others.items():
            rounds = simulate(unseen, some, ROUNDS, weight=LAM, user=user)
            print(f"{title}: {line(rounds, some[0].kind)}", flush=True)


if __name__ == "__main__":
    main()
