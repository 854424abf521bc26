"""The names that ``import mindseye`` offers: one table, what type checkers read of it, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import mindseye
from cluster.imports import PACKAGES

ROOT = Path(__file__).parents[3]
SOURCE = ast.parse((ROOT / "mindseye.py").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", mindseye._PUBLIC)
def test_every_name_leads_somewhere(name: str) -> None:
    value = getattr(mindseye, name)
    assert value.__doc__
    assert getattr(mindseye, name) is value


def test_type_checkers_read_the_same_names() -> None:
    [block] = [each for each in SOURCE.body if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"]
    read = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name
            whole = f"{line.module}.{alias.name}"
            read[alias.name] = whole if whole in mindseye._PUBLIC.values() else f"{line.module}:{alias.name}"
    assert read == mindseye._PUBLIC
    assert list(mindseye._PUBLIC) == sorted(mindseye._PUBLIC)


def test_dir_and_star_have_the_names_and_nothing_else() -> None:
    assert dir(mindseye) == sorted(["main", *mindseye._PUBLIC])
    assert sorted(mindseye.__all__) == dir(mindseye)
    with pytest.raises(AttributeError, match="no attribute 'serch'"):
        _ = mindseye.serch  # type: ignore[attr-defined]


def test_importing_it_loads_neither_pytorch_nor_ray() -> None:
    code = "import sys, mindseye; dir(mindseye); print({'torch', 'ray', 'faiss', 'numpy', 'cyclopts'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "set()"


def test_a_package_of_somebody_else_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import mindseye"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"ImportError: {tmp_path}/training hides mindseye's own package training" in done.stderr


def test_the_packages_are_named_alike_wherever_they_are_named() -> None:
    [loop] = [each for each in ast.walk(SOURCE) if isinstance(each, ast.For) and ast.unparse(each.target) == "package"]
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert ast.literal_eval(loop.iter) == PACKAGES
    assert {pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]} == set(PACKAGES)
