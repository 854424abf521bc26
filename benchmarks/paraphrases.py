"""From which cosine on a text that has none of a dictionary's words still says one of its values.

    make demo                                        # leaves the words that this takes
    .venv/bin/python -m benchmarks.paraphrases [--demo demo-out]

Texts that describe a value without its word, as captions do that the demo's models have learned from; their held-out
paraphrases; and texts that say no value at all. ``retrieval.words.PARAPHRASE`` is chosen on the first, beside half of
the last; the rest is what is reported.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from cluster.loading import load_query_encoder
from demo.grammar import COLOURS, PATTERNS, SHAPES, Use
from retrieval.artifacts import QuerySet
from retrieval.words import PARAPHRASE, Dictionary

THRESHOLDS = (0.0, 0.3, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)
NOTHING = (
    "a photo", "a picture of it", "something", "another one", "the same again", "larger", "smaller", "turned round",
    "in the middle", "on a table", "at night", "in the sky", "on the floor", "in a kitchen", "for a race", "one of it",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo-out"), help="the folder that mindseye demo has filled")
    dictionary = Dictionary.of(QuerySet.open(parser.parse_args().demo / "words"))
    encoder = load_query_encoder("tiny")

    def near(texts: list[str]) -> tuple[np.ndarray, list[str]]:
        """The cosine of the nearest value to each text, and its name."""
        cosines_BW = dictionary.cosines_of_texts(encoder.text_vectors(texts))
        return cosines_BW.max(axis=1), [dictionary.values[w].name for w in cosines_BW.argmax(axis=1)]

    for use, nothing in (("training", NOTHING[::2]), ("evaluation", NOTHING[1::2])):
        said = _said(use)  # type: ignore[arg-type]
        cosines, names = near([text for text, _ in said])
        right = np.array([name == value for name, (_, value) in zip(names, said, strict=True)])
        idle, _ = near(list(nothing))
        print(f"{use}: | cosine | right, of {len(said)} | another value | no value, of {len(idle)}, taken for one |")
        for threshold in THRESHOLDS:
            taken = cosines >= threshold
            shares = ((right & taken).mean(), (~right & taken).mean(), (idle >= threshold).mean())
            title = f"{threshold:g}{' (ours)' if threshold == PARAPHRASE else ''}"
            print(f"| {title} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")


def _said(use: Use) -> list[tuple[str, str]]:
    """Texts without the word of a value, and the value."""
    values = {**COLOURS, **PATTERNS, **SHAPES}
    return [(clause, value) for value, wording in values.items() for clause in wording.clauses(use)]


if __name__ == "__main__":
    main()
