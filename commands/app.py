"""The command line: all commands, and how one ends that fails."""

from __future__ import annotations

import sys

from cyclopts import App

from commands.benchmark import benchmark
from commands.dataset import app as dataset
from commands.demo import demo
from commands.doctor import doctor
from commands.evaluate import evaluate
from commands.failure import FAULT, MISTAKE, is_mistake, report_fault, say_mistake
from commands.import_features import import_features
from commands.index import app as index
from commands.plan import plan
from commands.queries import queries
from commands.search import search
from commands.serve import serve
from commands.status import status
from commands.submit import delimited, submitting
from commands.suite import suite
from commands.train import import_aggregator, train, train_composer

app = App(
    name="mindseye",
    help="Find every image of a category from words.\n\n"
    "A vision-and-language model answers a text; a diffusion model imagines it as images; both rank the gallery.",
    help_format="plaintext",
)
MAKING = (
    demo,
    dataset,
    index,
    queries,
    benchmark,
    evaluate,
    suite,
    train,
    train_composer,
    import_aggregator,
    import_features,
)
for command in (*MAKING, search, serve, plan, status, doctor):
    app.command(command)
app.command(submitting(app))


def run() -> None:
    """Run the command that ``sys.argv`` names."""
    try:
        app(delimited(sys.argv[1:]))
    except Exception as error:
        if is_mistake(error):
            say_mistake(error)
            sys.exit(MISTAKE)
        report_fault(error)
        sys.exit(FAULT)
