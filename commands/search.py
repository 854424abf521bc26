"""``mindseye search``: one query of texts, pictures and rows, answered in this process."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.table import Table

from commands.console import Profile, out, quoted, say_made, say_next

if TYPE_CHECKING:  # --help need not wait for PyTorch
    from PIL import Image

    from retrieval.assistant.endpoint import Assistant, Spent
    from retrieval.evidence import Evidence
    from retrieval.finder import Answer

Repeated = Parameter(negative="")


def search(
    text: str,
    target: str | None = None,
    *,
    image: Annotated[list[Path] | None, Repeated] = None,
    like: Annotated[list[str] | None, Repeated] = None,
    without: Annotated[list[str] | None, Repeated] = None,
    unlike: Annotated[list[str] | None, Repeated] = None,
    k: int = 10,
    mode: Literal["text", "visual", "fused"] = "fused",
    weight: float | None = None,
    images: int | None = None,
    seed: int = 0,
    fuse: Literal["mean", "max", "rrf"] = "mean",
    rerank: Literal["none", "neighbours", "judge", "list"] = "none",
    depth: int | None = None,
    aggregator: str | None = None,
    ask: Annotated[bool, Parameter(negative="")] = False,
    focus: str | None = None,
    ignore: Annotated[list[str] | None, Repeated] = None,
    bridge: Literal["auto", "none", "words", "composer"] = "auto",
    composer: str | None = None,
    words: str | None = None,
    profile: Profile = "tiny",
    sheet: Path | None = None,
) -> None:
    """Find images by words, by pictures, by images of the gallery, or by all of them.

    Parameters
    ----------
    text
        What to find: a name or a description. With image or like it can be left out.
    target
        What mindseye index (or mindseye demo) made, or an index itself.
    image
        Find what looks like this picture; can be given several times, as the next three.
    like
        Find more like this image of the gallery; its id.
    without
        Words for what is not wanted.
    unlike
        An image of the gallery that is not wanted; its id.
    k
        Number of results.
    mode
        Rank by text alone, by imagined images alone, or by both.
    weight
        λ of the fused ranking, 0 to 1; by default the aggregator's, else 0.5.
    images
        Images to imagine; by default the profile's.
    seed
        Seed of the images.
    fuse
        How several imagined images become one ranking: pooled (mean), by the image that a result is most like (max),
        or by reciprocal ranks (rrf).
    rerank
        A second stage: the first results ranked again by how they lie among their neighbours, or by the profile's
        assistant, which is sent their pictures one by one (judge) or all on one (list).
    depth
        How many rows the second stage, or each list of rrf, has; by default 100. An assistant is shown no more than its
        profile says.
    aggregator
        A trained aggregator; by default the profile's. Without one, the images are averaged.
    ask
        Have the profile's assistant ask what would narrow the search: it is sent the labels of what was found, and
        the dictionary's words that split it.
    focus
        The aspect that counts alone, by the dictionary's words for it, such as colour.
    ignore
        An aspect that does not count; can be given several times.
    bridge
        Whether pictures are read into words: together with texts (auto), always (words), or never (none). With words,
        the profile's assistant puts them into one text, if there is one. The composer makes one vector of pictures and
        texts instead, without imagining.
    composer
        A trained composer, of mindseye train-composer; by default the profile's.
    words
        A query set of words with aspects, the dictionary; by default the one in target, if it has one.
    sheet
        Save a contact sheet (PNG) here.
    """
    from cluster.loading import load_assistant, open_finder
    from cluster.profile import load_profile
    from retrieval.second_stage import DEPTH

    phrase, place = (text, target) if target is not None else (None, text)
    evidence = _evidence(phrase, image or [], like or [], without or [], unlike or [])
    title = ", ".join(evidence)
    settings = load_profile(profile)
    wanted = settings.queries.images if images is None else images
    assistant = load_assistant(settings) if ask or bridge == "words" or rerank in ("judge", "list") else None
    finder = open_finder(place, settings, aggregator=aggregator, words=words, assistant=assistant, composer=composer)
    answer = finder.find(
        list(evidence.values()),
        k,
        mode=mode,
        weight=weight,
        images=wanted,
        seed=seed,
        fuse=fuse,
        rerank=rerank,
        depth=DEPTH if depth is None else depth,
        focus=focus,
        ignore=ignore or [],
        bridge=bridge,
    )
    _print(answer, list(evidence))
    if ask:
        _ask(assistant, list(evidence.values()), answer)
    if assistant:
        _print_spent(assistant.spent)
    if sheet:
        from pipelines.answer_sheet import answer_sheet

        sheet.write_bytes(answer_sheet(title, answer, finder.index))
        say_made(str(sheet))
    elif answer.results:
        again = f"mindseye search {shlex.quote(phrase)}" if phrase else "mindseye search"
        say_next(
            f"{again} {quoted(place)} --like {shlex.quote(answer.results[0].id)}",
            f"{again} {quoted(place)} --sheet found.png",
        )


def _evidence(
    words: str | None, images: list[Path], like: list[str], without: list[str], unlike: list[str]
) -> dict[str, Evidence]:
    """What is searched for, by the name under which the answer shows it.

    Raises:
        UserError: there is neither text nor picture nor row (``missing``), or a picture cannot be read.
    """
    from retrieval.errors import UserError
    from retrieval.evidence import AGAINST, Picture, Row, Text

    evidence: dict[str, Evidence] = {words: Text(words)} if words is not None else {}
    evidence |= {f"image {file.name}": Picture(_read(file)) for file in images}
    evidence |= {f"like {id}": Row(id) for id in like}
    if not evidence:
        raise UserError(
            "give what to find and where: mindseye search TEXT TARGET, or --image FILE or --like ID in place of TEXT",
            code="missing",
            field="target",
        )
    evidence |= {f"without {text}": Text(text, AGAINST) for text in without}
    return evidence | {f"unlike {id}": Row(id, AGAINST) for id in unlike}


def _read(file: Path) -> Image.Image:
    from retrieval.errors import UserError
    from retrieval.images import MAX_BYTES, ImageRejected, decode

    try:
        with file.open("rb") as stream:
            return decode(stream.read(MAX_BYTES + 1))
    except (OSError, ImageRejected) as error:
        raise UserError(f"the picture {file} cannot be used: {error}", code="unusable-image", field="image") from error


def _ask(assistant: Assistant | None, evidence: list[Evidence], answer: Answer) -> None:
    from retrieval.assistant.found import asked_of

    labels, refinements = [found.label for found in answer], [word.text for word in answer.refinements]
    asked = asked_of(assistant, evidence, labels, refinements, answer.words)
    if asked.answer:
        out.print(f"{asked.answer.question} {', '.join(asked.answer.choices)}", markup=False)
    else:
        out.print(f"no question: {asked.shortfall}", style="yellow", markup=False)


def _print_spent(spent: Spent) -> None:
    out.print(
        f"calls of the assistant: {spent.calls} ({spent.failed} failed), {spent.tokens_in:,} tokens in,"
        f" {spent.tokens_out:,} out"
    )


def _print(answer: Answer, names: list[str]) -> None:
    if answer.degraded:
        instead = "with real images of the gallery" if answer.visual == "nearest" else "as far as possible"
        out.print(f"ranked {instead}: {answer.degraded}", style="yellow")
    if answer.words:
        out.print(f"read as: {' '.join(word.value for word in answer.words.words)}; searched for: {answer.words.text}")
    several = len(names) > 1 and all(answer.shares)
    pieces = [f"({number})" for number in range(1, len(names) + 1)]
    lines = [f"{number} {name}" for number, name in zip(pieces, names, strict=True)] if len(names) > 1 else names
    table = Table(title="\n".join(lines) + f"   (λ = {answer.weight:.2f})", title_justify="left")
    rescored = any(found.rerank_score is not None for found in answer)
    again = ("second stage",) if rescored else ()
    for heading in ("", *again, "score", *(pieces if several else ("text part", "visual part"))):
        table.add_column(heading, justify="right")
    for heading in ("label", "path"):
        table.add_column(heading)
    table.add_column("id", no_wrap=True)  # to be copied
    for i, (found, shares) in enumerate(zip(answer, answer.shares, strict=True), 1):
        parts = shares if several else (found.text_part, found.visual_part)
        scores = (found.rerank_score, found.score) if rescored else (found.score,)
        numbers = ("" if value is None else f"{value:.4f}" for value in (*scores, *parts))
        table.add_row(str(i), *numbers, found.label or "", found.path, found.id)
    out.print(table)
    if answer.refinements:
        out.print("to refine: " + ", ".join(f"{of.text} ({of.share:.0%})" for of in answer.refinements))
