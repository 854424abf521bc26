"""Running a notebook in this process: what Jupyter would do with cells that print and end in a picture.

python tests/notebooks.py examples/explore.ipynb      writes the outputs of a run into the notebook
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return the notebook with the outputs of a run in the current directory: what was printed, and last values."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells, count = [], 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            count += 1
            cell = cell | {"execution_count": count, "outputs": _outputs("".join(cell["source"]), count, names)}
        cells.append(cell)
    return notebook | {"cells": cells}


def _outputs(source: str, count: int, names: dict[str, Any]) -> list[dict[str, Any]]:
    module = ast.parse(source)
    if module.body and isinstance(last := module.body[-1], ast.Expr):
        module.body[-1] = ast.Assign([ast.Name("_", ast.Store())], last.value)
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.fix_missing_locations(module), f"<cell {count}>", "exec"), names)
    value = names.pop("_", None)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": [type(value).__name__]}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        outputs.append({"output_type": "execute_result", "execution_count": count, "data": data, "metadata": {}})
    return outputs


if __name__ == "__main__":
    file = Path(sys.argv[1]).absolute()
    os.chdir(tempfile.mkdtemp())
    made = execute(json.loads(file.read_text(encoding="utf-8")))
    file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
