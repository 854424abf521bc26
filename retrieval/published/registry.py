"""The benchmarks that are read, by name."""

from __future__ import annotations

from collections.abc import Mapping

from retrieval.errors import UserError
from retrieval.published import (
    circo,
    cvg_text,
    deeppatent2,
    ilias,
    imagecode,
    inquire,
    revisited,
    visual_rag,
    xtd10,
)
from retrieval.published.query import Benchmark

_MODULES = (circo, cvg_text, deeppatent2, ilias, imagecode, inquire, revisited, visual_rag, xtd10)
BENCHMARKS: Mapping[str, Benchmark] = {module.BENCHMARK.name: module.BENCHMARK for module in _MODULES}


def find(name: str, part: str | None) -> tuple[Benchmark, str]:
    """Return a benchmark, and the part of it that is meant.

    Raises:
        UserError: there is no benchmark of that name (code ``unknown``, field ``name``), or it has no such part (field
            ``part``).
    """
    if name not in BENCHMARKS:
        message = f"the benchmark {name!r} is not known; there are {', '.join(BENCHMARKS)}"
        raise UserError(message, code="unknown", field="name")
    benchmark = BENCHMARKS[name]
    if part is None:
        return benchmark, benchmark.parts[0]
    if part not in benchmark.parts and not benchmark.any_part:
        message = f"{name} has the parts {', '.join(benchmark.parts)}, not {part!r}"
        raise UserError(message, code="unknown", field="part")
    return benchmark, part
