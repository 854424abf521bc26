"""mindseye finds every image of a category from words: the command line."""

from __future__ import annotations

import sys

from cyclopts import App
from rich.console import Console

from commands.demo import demo
from commands.doctor import doctor
from commands.evaluate import evaluate
from commands.index import app as index
from commands.queries import queries
from commands.search import search
from commands.serve import serve
from commands.train import import_aggregator, train

app = App(
    name="mindseye",
    help="Find every image of a category from words.\n\n"
    "A vision-and-language model answers a text; a diffusion model imagines it as images; both rank the gallery.",
    help_format="plaintext",
)
for command in (demo, index, queries, evaluate, train, import_aggregator, search, serve, doctor):
    app.command(command)


def main() -> None:
    """Run the command line. What a person can mend is one message and exit code 2, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        Console(stderr=True, highlight=False, markup=False).print(f"mindseye: {error}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
