"""``mindseye plan``: what a gallery of so many images takes, before anything is bought."""

from __future__ import annotations

import json as json_format
from typing import TYPE_CHECKING

from rich.table import Table

from commands.console import Profile, err, out

if TYPE_CHECKING:  # the models' libraries and FAISS take seconds, which --help need not wait for
    from cluster.rates import Origin
    from cluster.sheet import Figure, Sheet


def plan(
    *,
    images: float,
    profile: Profile = "tiny",
    vocabulary: float = 0,
    load: float = 0,
    hits: float = 0,
    k: int = 100,
    rates: str | None = None,
    rate: list[str] | None = None,
    calibrate: bool = False,
    source: str | None = None,
    json: bool = False,
) -> None:
    """Compute what an index, its jobs and its service take: storage, memory, hours, replicas, network, cost.

    What is computed from rates that nobody gave or measured says which are missing; what was assumed is listed.

    Parameters
    ----------
    images
        Images of the gallery, such as 1e9.
    vocabulary
        Queries that are imagined in batch (mindseye queries).
    load
        Requests in a second that the service is to answer.
    hits
        Share of them that the query memory has, 0 to 1.
    k
        Results of a request.
    rates
        A YAML or JSON file of rates and prices, as docs/capacity.md lists them.
    rate
        One of them, NAME=NUMBER; it wins over the file, and the file over --calibrate. May be given again.
    calibrate
        Measure on this machine what can be measured in a minute or so: the profile's models, and FAISS.
    source
        With --calibrate, a folder whose first images are decoded, not noise.
    json
        Print JSON, not tables.
    """
    from cluster.profile import load_profile
    from cluster.rates import parse_rates, read_rates
    from commands.planning import capacity_plan

    given = (read_rates(rates) if rates else {}) | parse_rates(rate or [])
    settings = load_profile(profile)
    measured: dict[str, float] = {}
    if calibrate:
        from pipelines.calibration import calibrate as measure

        measured = measure(settings, source, log=lambda line: err.print(line, soft_wrap=True))
    sheet = capacity_plan(
        settings,
        given,
        measured,
        images=images,
        queries=vocabulary,
        load=load,
        hits=hits,
        k=k,
    )
    if json:
        out.print(json_format.dumps(sheet.as_json(), indent=1, ensure_ascii=False), soft_wrap=True)
    else:
        _print(sheet)


def _print(sheet: Sheet) -> None:
    cut = sheet.cut
    out.print(
        f"{sheet.workload.images:,} images of {cut.dim:,} dimensions: {cut.shards:,} shard(s) of {cut.rows:,} rows,"
        f" {cut.factory}",
        soft_wrap=True,
    )
    caption = "rates.X: --rate X=NUMBER, or in the file of --rates.  *: of rates that are assumed, below"
    table = Table(caption=caption, caption_justify="left")
    for heading, justify in (("", "left"), ("what", "left"), ("figure", "right"), ("how", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    section = ""
    for figure in sheet.figures:
        if figure.section != section and section:
            table.add_section()
        starts, section = figure.section != section, figure.section
        mark = " *" if figure.assumed and figure.value is not None else "  "
        table.add_row(section if starts else "", figure.name, _value(figure) + mark, _how(figure))
    out.print(table)
    for note in sheet.notes:
        out.print(f"note: {note}", soft_wrap=True)
    _print_rates(sheet)


def _value(figure: Figure) -> str:
    from pipelines.sizes import format_size

    value, unit = figure.value, figure.unit
    if value is None:
        return "not known"
    if unit in ("B", "B/s"):
        return format_size(value) + unit.removeprefix("B")
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
    return f"{text} {unit}".rstrip()


def _how(figure: Figure) -> str:
    from cluster.rates import CALIBRATED

    if figure.value is not None:
        return figure.how
    remedy = " or --calibrate" if CALIBRATED.issuperset(figure.missing) else ""
    return f"give {', '.join(f'rates.{name}' for name in figure.missing)}{remedy}"


def _print_rates(sheet: Sheet) -> None:
    from cluster.rates import Rates

    used: dict[Origin, list[str]] = {}
    for name, value in sheet.rates:
        if value is not None:
            text = f"{name} = {value:,.6g}"
            if sheet.known.origins[name] == "assumed":
                text = f"{text}  {Rates.model_fields[name].description}"
            used.setdefault(sheet.known.origins[name], []).append(text)
    for origin, rates in used.items():
        out.print(f"{origin}:")
        for rate in rates:
            out.print(f"  {rate}", soft_wrap=True)
