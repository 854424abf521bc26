"""mindseye finds every image of a category from words: the command line."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Literal

from cyclopts import App
from rich.console import Console
from rich.table import Table

from commands.console import Cluster, Profile, listed, out, say_made, say_next, with_profile
from commands.index import app as index_app

# Commands import what they need themselves: torch and Ray take seconds, which --help need not wait for.

app = App(
    name="mindseye",
    help="Find every image of a category from words.\n\n"
    "A vision-and-language model answers a text; a diffusion model imagines it as images; both rank the gallery.",
    help_format="plaintext",
)
app.command(index_app)


@app.command
def demo(folder: Path = Path("demo-out"), *, profile: Profile = "tiny", address: Cluster = None) -> None:
    """Run the main job on a rendered gallery: embed, index, imagine, train, evaluate, serve.

    Parameters
    ----------
    folder
        Where everything goes. A folder that an earlier demo filled is emptied first.
    """
    from cluster.ports import free_port
    from cluster.profile import load_profile
    from cluster.session import cluster_address, session
    from demo.run import run_demo
    from pipelines.report import results_table
    from serving.client import search as ask
    from serving.launch import prepare, running

    settings = load_profile(profile)

    def say(line: str) -> None:
        out.print(f"== {line}", style="bold")

    with session(address):
        result = run_demo(folder, settings, say)
        say("serving: one query over HTTP")
        port = free_port()
        store = f"sqlite:{folder.absolute() / 'remembered.sqlite'}"
        arguments = {"target": str(folder), "profile": profile, "store": store}
        with running(prepare(arguments, port=port), everywhere=bool(cluster_address(address))) as url:
            answer = ask(url, result.example, k=5)
    out.print(f"{answer.query!r} over HTTP: ranked by {answer.stage}, λ = {answer.weight:.2f}, {answer.timings_ms} ms")
    for found in answer.results:
        out.print(f"  {found.score:.4f}  {found.path}")
    out.print()
    out.print(results_table(result.evaluation, f"{result.gallery.manifest.rows:,} images of unseen categories"))
    recall = result.index.manifest.recall["10"]
    out.print(f"recall@10 of the index against exact search, by λ: {listed(recall)}")
    say_made(*result.made, result.index.uri)
    say_next(
        with_profile(f"mindseye serve {folder} --warm {folder}/queries", profile),
        with_profile(f"mindseye search {shlex.quote(result.example)} {folder} --sheet found.png", profile),
    )


@app.command
def queries(
    vocabulary: str,
    target: str,
    *,
    profile: Profile = "tiny",
    images: int | None = None,
    seed: int | None = None,
    address: Cluster = None,
) -> None:
    """Imagine a vocabulary in batch: texts to a query set.

    Parameters
    ----------
    vocabulary
        A text file with a name on each line, or CSV or Parquet with columns name, description, label; or text, kind,
        label.
    target
        Folder or URI of the query set.
    images
        Images to imagine for each query; by default the profile's.
    seed
        Seed of the images; by default the profile's.
    """
    from cluster.profile import load_profile
    from cluster.session import session
    from pipelines.queries import build_queries, read_vocabulary

    settings = load_profile(profile)
    entries = read_vocabulary(vocabulary)
    with session(address):
        made = build_queries(entries, target, settings, images=images, seed=seed)
    rejected = made.manifest.rejected
    out.print(f"{made.manifest.queries:,} queries, {made.manifest.images} images each", end="")
    out.print(f"; rejected images: {listed(rejected)}" if rejected else "")
    say_made(made.uri)
    say_next(f"mindseye evaluate GALLERY {target}")


@app.command
def evaluate(
    gallery: str,
    query_set: str,
    report: str,
    *,
    aggregator: str | None = None,
    weight: float | None = None,
    address: Cluster = None,
) -> None:
    """Measure how well a query set finds the labelled images of a gallery: by text alone, by images alone, by both.

    Parameters
    ----------
    gallery
        The gallery: TARGET/gallery of mindseye index.
    query_set
        The query set, of the same models.
    report
        Folder for per-query results, a plot and a contact sheet.
    aggregator
        A trained aggregator, measured beside the mean of the images; it must not have learned from these labels.
    weight
        λ of the fused ranking of the mean, 0 (text alone) to 1 (images alone); by default 0.5.
    """
    from cluster.session import session
    from pipelines.contact_sheet import contact_sheet
    from pipelines.evaluate import evaluate as run
    from pipelines.report import results_table, write_report
    from retrieval.artifacts import Gallery, QuerySet, TrainedAggregator
    from retrieval.folder import Folder
    from retrieval.fusion import DEFAULT_WEIGHT

    images, texts = Gallery.open(gallery), QuerySet.open(query_set)
    trained = TrainedAggregator.open(aggregator) if aggregator else None
    with session(address):
        aggregators = {"trained": trained} if trained else {}
        evaluation = run(images, texts, weight=DEFAULT_WEIGHT if weight is None else weight, aggregators=aggregators)
    out.print(results_table(evaluation, gallery))
    if evaluation.unlabelled:
        out.print(f"{evaluation.unlabelled} queries have no label and were not measured")
    if absent := evaluation.without_positive:
        out.print(f"{len(absent)} labels have no image in the gallery and were not measured: {', '.join(absent[:10])}")
    reports = write_report(evaluation, report)
    shown = evaluation.weights["trained" if trained else "fused"]
    sheet = contact_sheet(images, texts, shown, aggregator=trained)
    Folder(report).write_bytes("contact-sheet.png", sheet)
    say_made(*reports, f"{report}/contact-sheet.png")
    say_next(f"look at {report}/contact-sheet.png")


@app.command
def train(
    gallery: str,
    query_set: str,
    target: str,
    *,
    evaluation: str | None = None,
    profile: Profile = "tiny",
    address: Cluster = None,
) -> None:
    """Train the aggregator and λ on a labelled gallery and a query set of the same labels.

    The same command goes on where a killed run stopped.

    Parameters
    ----------
    gallery
        The gallery: TARGET/gallery of mindseye index, with labels.
    query_set
        The query set, of the same models. Queries and gallery images of one label belong together.
    target
        Folder or URI of the aggregator.
    evaluation
        A query set that the aggregator will be measured on: labels that it shares with this one are an error.
    """
    from cluster.profile import load_profile
    from cluster.session import session
    from retrieval.artifacts import Gallery, QuerySet
    from training.trainer import train_aggregator

    settings = load_profile(profile)
    images, texts = Gallery.open(gallery), QuerySet.open(query_set)
    measured = QuerySet.open(evaluation) if evaluation else None
    with session(address):
        made = train_aggregator(images, texts, target, settings, evaluation=measured, say=out.print)
    left, manifest = made.left_out, made.aggregator.manifest
    if left.unlabelled or left.without_images:
        out.print(f"left out: {left.unlabelled} queries without a label, {left.without_images} without an image")
    if left.without_rows:
        out.print(
            f"left out: {len(left.without_rows)} labels without a gallery image: {', '.join(left.without_rows[:10])}"
        )
    before, best = made.history[0]["map"], manifest.training["validation_map"]
    out.print(
        f"mAP on held-out labels: {before:.3f} before training, {best:.3f} at step {manifest.training['best_step']};"
        f" λ = {manifest.weight:.3f}"
    )
    say_made(made.aggregator.uri, f"{made.aggregator.uri}/metrics.jsonl", f"{made.aggregator.uri}/curves.png")
    say_next(f"mindseye evaluate GALLERY QUERIES_OF_OTHER_LABELS REPORT --aggregator {target}")


@app.command
def import_aggregator(file: Path, target: str, like: str) -> None:
    """Take over a checkpoint that CLETIR's authors released.

    Parameters
    ----------
    file
        The checkpoint (.pth); only tensors are loaded from it.
    target
        Folder or URI of the aggregator.
    like
        A gallery of the models that the checkpoint was trained with.
    """
    from retrieval.artifacts import Gallery
    from training.reference import import_reference

    made = import_reference(file, target, Gallery.open(like))
    manifest = made.manifest
    out.print(f"{manifest.layers} layers of {manifest.dim} dimensions, λ = {manifest.weight:.3f}")
    say_made(made.uri)
    say_next(f"mindseye search TEXT TARGET --aggregator {target}")


@app.command
def search(
    text: str,
    target: str,
    *,
    k: int = 10,
    mode: Literal["text", "visual", "fused"] = "fused",
    weight: float | None = None,
    images: int | None = None,
    seed: int = 0,
    aggregator: str | None = None,
    profile: Profile = "tiny",
    sheet: Path | None = None,
) -> None:
    """Find images by words.

    Parameters
    ----------
    text
        What to find: a name or a description.
    target
        What mindseye index (or mindseye demo) made, or an index itself.
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
    aggregator
        A trained aggregator; by default the profile's. Without one, the images are averaged.
    sheet
        Save a contact sheet (PNG) here.
    """
    from cluster.loading import load_aggregator, load_query_encoder
    from cluster.profile import load_profile
    from retrieval.artifacts import Index
    from retrieval.finder import Finder
    from retrieval.folder import Folder

    settings = load_profile(profile)
    place = Folder(target)
    opened = Index.open(place / "index" if place.exists("index") else place)
    finder = Finder(load_query_encoder(settings), opened, load_aggregator(settings, aggregator))
    wanted = settings.queries.images if images is None else images
    answer = finder.search(text, k, mode=mode, weight=weight, images=wanted, seed=seed)
    if answer.degraded:
        out.print(f"ranked by text alone: {answer.degraded}", style="yellow")
    table = Table(title=f"{text}   (λ = {answer.weight:.2f})", title_justify="left")
    for heading in ("", "score", "text part", "visual part", "label", "path"):
        table.add_column(heading, justify="left" if heading in ("label", "path") else "right")
    for i, found in enumerate(answer.results, 1):
        parts = (f"{value:.4f}" for value in (found.score, found.text_part, found.visual_part))
        table.add_row(str(i), *parts, found.row["label"] or "", found.row["path"])
    out.print(table)
    if sheet:
        from PIL import Image

        from pipelines.contact_sheet import Section, Strip, draw, gallery_pictures

        rows = [found.row for found in answer.results]
        pictures = gallery_pictures(opened.manifest.sources, rows)
        imagined = [Image.fromarray(pixels) for pixels in answer.imagined.pixels_KHWC] if answer.imagined else []
        strips = [Strip("imagined", imagined, [None] * len(imagined))] if imagined else []
        strips.append(Strip("found", [pictures[row["batch"], row["path"]] for row in rows], [None] * len(rows)))
        sheet.write_bytes(draw([Section(text, strips)]))
        say_made(str(sheet))
    else:
        say_next(f"mindseye search {shlex.quote(text)} {target} --sheet found.png")


@app.command
def serve(
    target: str | None = None,
    *,
    index: str | None = None,
    profile: Profile = "tiny",
    aggregator: str | None = None,
    warm: str | None = None,
    host: str | None = None,
    port: int | None = None,
    store: str | None = None,
    address: Cluster = None,
) -> None:
    """Put an index on the network: an HTTP API and a page. Runs until Ctrl-C.

    Parameters
    ----------
    target
        What mindseye index (or mindseye demo) made, or an index itself.
    index
        Send the service that runs at this host and port to this index, or to one version of it, and end.
    aggregator
        A trained aggregator; by default the profile's. Without one, the images are averaged.
    warm
        A query set (mindseye queries) to remember: its queries are answered without imagining them again.
    host
        Address to listen at; by default the profile's, which is this machine alone. Any other needs API keys.
    port
        Port to listen at; by default the profile's.
    store
        Where imagined queries are kept: sqlite:FILE, redis://HOST:PORT/DB or memory:; by default the profile's.
    """
    from cluster.profile import load_profile

    settings = load_profile(profile).serve
    url = f"http://{host or settings.host}:{port or settings.port}"
    if index:
        from retrieval.folder import Folder
        from serving.client import ServiceFault, switch_index

        try:
            now = switch_index(url, Folder(index).uri)
        except ServiceFault as fault:
            raise ValueError(f"{url} stays with its index: {fault}") from fault
        out.print(f"{url} serves version {now.index_version} of {index}: {now.rows:,} images", soft_wrap=True)
        return
    if not target:
        raise ValueError("give what to serve: what mindseye index (or mindseye demo) made, or an index")
    from serving.launch import launch, prepare

    def up(url: str) -> None:
        out.print(f"serving {target} at {url}  (Ctrl-C ends it)", soft_wrap=True)
        question = shlex.quote('{"query": "yellow dotted fish"}')
        say_next(f"curl {url}/v1/search -H 'Content-Type: application/json' -d {question}")

    args = {"target": target, "profile": profile, "aggregator": aggregator, "warm": warm, "store": store}
    launch(prepare(args, host=host, port=port), address=address, up=up)


@app.command
def doctor(*, profile: Profile = "tiny") -> None:
    """Check this machine and the models of a profile; say what is missing and what to do."""
    from cluster.doctor import examine

    ok = True
    for check in examine(profile):
        line = f"{'ok  ' if check.ok else 'FAIL'} {check.what}: {check.found}"
        out.print(line, style="" if check.ok else "red", soft_wrap=True)
        if not check.ok:
            ok = False
            out.print(f"     {check.remedy}", soft_wrap=True)
    if not ok:
        sys.exit(1)
    say_next("mindseye demo")


def main() -> None:
    """Run the command line. What a person can mend is one message and exit code 2, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"mindseye: {error}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
