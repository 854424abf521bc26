"""A simulated user: what is seen leaves the ranking, what is marked becomes evidence, both sides rank the same rest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from errors import refused
from synthetic import D1, D2, directions, write_gallery

from pipelines.rounds import Opening, Rounds, User, simulate
from pipelines.truth import Truth
from retrieval.artifacts import Gallery
from retrieval.evidence import MAX_PIECES, Encoded, Row
from retrieval.feedback import marked
from retrieval.fusion import unit
from retrieval.metrics import average_precision

pytestmark = pytest.mark.usefixtures("in_process")

ROWS, CLASSES, LAM = 240, 6, 0.4
USER = User(k=5, picks=2, drops=1, weights=(1.0, 0.5))


class World:
    """Rows of classes, and queries that lie far from them."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.of_class = rng.integers(CLASSES, size=ROWS)
        halves = [
            unit(directions(CLASSES, dim, rng)[self.of_class] + 0.9 * directions(ROWS, dim, rng)) for dim in (D1, D2)
        ]
        self.vlm, self.vision = (half.astype(np.float16) for half in halves)
        self.ids = [f"r{i:03d}" for i in range(ROWS)]
        labels = [f"class {i}" for i in self.of_class]
        self.gallery: Gallery = write_gallery(folder, self.vlm, self.vision, ids=self.ids, labels=labels, parts=3)
        self.openings = []
        for number in range(12):
            row = int(np.flatnonzero(self.of_class == number % CLASSES)[number])
            text = unit(self.vlm[row].astype(float) + 1.2 * directions(1, D1, rng)[0])[None]
            visual = unit(self.vision[row].astype(float) + 1.2 * directions(1, D2, rng)[0])[None]
            same = tuple(id for id, label in zip(self.ids, labels, strict=True) if label == labels[row])
            other = self.ids[int(np.flatnonzero(self.of_class != number % CLASSES)[number])]
            truth = Truth(labels[row]) if number % 2 else Truth(None, same, (other,))
            self.openings.append(Opening(f"q{number:02d}", "text", "name", Encoded(np.ones(1), text, visual), truth))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("rounds"))


def plain(world: World, opening: Opening) -> list[tuple[float, float, int]]:
    """Two rounds of USER in plain sums: AP of the round and of the first search over the rest, relevant rows shown."""
    truth, place = opening.truth, {id: i for i, id in enumerate(world.ids)}
    of_class = {id for id, c in zip(world.ids, world.of_class, strict=True) if f"class {c}" == truth.label}
    relevant, gone = set(truth.relevant or of_class), set(truth.junk)
    picked: list[str] = []
    dropped: list[str] = []
    figures = []
    for _ in range(3):
        orders = []
        for evidence in (marked(picked, dropped, weights=USER.weights), []):
            scores = np.zeros(ROWS)
            for lam, own, rows in (
                (1 - LAM, opening.encoded.vlm_ED1[0], world.vlm),
                (LAM, opening.encoded.vision_ED2[0], world.vision),
            ):
                total = own.astype(float)
                for piece in evidence:
                    row = rows[place[piece.id]].astype(float)
                    total = total + piece.weight * row / np.linalg.norm(row)
                scores += lam * rows.astype(float) @ (total / np.linalg.norm(total))
            orders.append([world.ids[i] for i in np.argsort(-scores, kind="stable") if world.ids[i] not in gone])
        left = relevant - gone
        ap = [average_precision([order.index(id) for id in left], len(left)) for order in orders]
        shown = orders[0][: USER.k]
        picked += [id for id in shown if id in relevant][: USER.picks]
        dropped += [id for id in shown if id not in relevant][: USER.drops]
        gone |= set(shown)
        figures.append((ap[0], ap[1], len(relevant & set(shown))))
    return figures


def test_rounds_are_those_of_a_plain_user(world: World) -> None:
    rounds = simulate(world.gallery, world.openings, 2, weight=LAM, user=USER)
    for opening in world.openings:
        rows = [row for row in rounds.table.to_pylist() if row["query"] == opening.id]
        for number, (ap, first, shown) in enumerate(plain(world, opening)):
            ours, theirs = [row for row in rows if row["round"] == number]
            assert (ours["system"], theirs["system"]) == ("rounds", "first search")
            assert (ours["ap"], theirs["ap"]) == pytest.approx((ap, first), abs=1e-9)
            assert (ours["shown_relevant"], theirs["shown_relevant"]) == (shown, None)


def test_marks_find_more_and_what_was_found_stays(world: World) -> None:
    rounds = simulate(world.gallery, world.openings, 3, weight=LAM)
    gain = rounds.gain("name", 3)
    assert gain
    assert gain.low > 0
    first = rounds.gain("name", 0)
    assert first
    assert (first.low, first.high) == (0, 0)
    assert (np.diff(rounds.hits("name")) >= 0).all()
    alone = simulate(world.gallery, world.openings, 3, weight=LAM, user=User(picks=0, drops=0))
    unmoved = alone.gain("name", 3)
    assert unmoved
    assert (unmoved.low, unmoved.high) == (0, 0)
    misled = simulate(world.gallery, world.openings, 3, weight=LAM, user=User(noise=1.0)).gain("name", 3)
    assert misled
    assert misled.mean < 0


def test_an_edit_takes_the_place_of_the_text(world: World) -> None:
    right = world.openings[0]
    other = world.openings[1].encoded
    wrong = right._replace(encoded=other, edits=[(right.encoded.vlm_ED1[0], right.encoded.vision_ED2[0])])
    marks = User(picks=0, drops=0)
    aps = [
        simulate(world.gallery, [each], 1, weight=LAM, user=marks).table.to_pylist() for each in (right, wrong)
    ]  # fmt: skip
    assert aps[1][0]["ap"] < aps[0][0]["ap"]
    assert aps[1][2]["ap"] > aps[1][3]["ap"]  # against the first search over the same rest


def test_who_has_found_everything_is_done(world: World) -> None:
    only = world.openings[0]._replace(truth=Truth(None, (world.ids[7],)))
    rounds = simulate(world.gallery, [only], 2, weight=LAM, user=User(k=ROWS))
    assert rounds.table["ap"].to_pylist()[2:] == [None] * 4
    assert rounds.mean("name", 1) is None
    assert rounds.hits("name").tolist() == [1, 1, 1]
    assert rounds.summary()["name"]["ap"][1] is None


def test_best_log_rank_by_hand(world: World) -> None:
    one = world.openings[0]
    table = simulate(world.gallery, [one], 2, weight=LAM, user=USER).table
    ranks = [7, 9, 1]
    place = table.column_names.index("best_rank")
    by_hand = table.set_column(place, "best_rank", [[rank for rank in ranks for _ in (0, 1)]])
    best = np.log([8, 8, 2])
    assert Rounds(by_hand, 5).best_log_rank("name") == pytest.approx(((best[0] + best[2]) / 2 + best[1]) / 2)


def test_marks_have_the_weights_of_their_sides_and_the_newest_stay() -> None:
    rows = marked(["a", "b"], ["c"], weights=(2.0, 0.5))
    assert rows == [Row("a", 1.0), Row("b", 1.0), Row("c", -0.5)]
    assert marked([], []) == []
    picked, dropped = [f"p{i}" for i in range(20)], [f"d{i}" for i in range(20)]
    many = marked(picked, dropped)
    assert len(many) == MAX_PIECES - 1
    assert [row.id for row in many if row.weight > 0] == picked[-8:]
    assert [row.id for row in many if row.weight < 0] == dropped[-7:]
    assert len(marked(picked, dropped[:2], beside=3)) == MAX_PIECES - 3
    assert {row.id for row in marked(picked[:2], dropped)} == {"p0", "p1", *dropped[-13:]}
    assert marked(picked, dropped, beside=MAX_PIECES) == []


def test_rounds_and_openings_are_needed(world: World) -> None:
    with refused("out-of-range", "rounds"):
        simulate(world.gallery, world.openings, 0, weight=LAM)
    with refused("empty", "queries"):
        simulate(world.gallery, [], 1, weight=LAM)
