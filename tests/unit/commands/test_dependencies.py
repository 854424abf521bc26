"""What is imported is declared, and what is declared is needed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
INSTALLED = [pattern.removesuffix("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]]
OURS = {*INSTALLED, *PROJECT["tool"]["setuptools"]["py-modules"], "benchmarks", "tests"}
NOT_IMPORTED = {
    "accelerate": "diffusers loads large models through it",
    "mindseye": "extras name each other",
    "flask-cors": "moto's server",
    "httpx2": "Starlette's test client",
    "mypy": "a program",
    "pre-commit": "a program",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "ruff": "a program",
    "types-pyyaml": "types for mypy",
}
# Files beside the packages that are used from a checkout.
NOT_INSTALLED = {"cluster/install.sh", "cluster/kubernetes", "cluster/ray_cluster_gcp.yaml"}
UNDECLARED = {"simplejpeg": "a peer that benchmarks/embed.py measures where it is installed"}


def canonical(requirement: str) -> str:
    """The name of a requirement, such as ``ray`` of ``Ray[serve]>=2.60``, as registries compare names."""
    name = re.match(r"[\w.-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name[0]).lower()


def declared(*extras: str) -> set[str]:
    project = PROJECT["project"]
    groups = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    return {canonical(requirement) for group in groups for requirement in group}


def imports(node: ast.AST) -> list[str]:
    """Modules that a node imports, ``pytest.importorskip`` included."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module]
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
        return [str(ast.literal_eval(node.args[0]))]
    return []


@cache
def foreign(*places: str) -> dict[str, set[str]]:
    """Distributions that the files of these places import, wherever in them, with the files that do."""
    local = OURS | {file.stem for file in (ROOT / "tests").rglob("*.py")}
    by_module = packages_distributions()
    found: dict[str, set[str]] = {}
    for file in (file for place in places for file in sorted((ROOT / place).rglob("*.py")) or [ROOT / place]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for module in {name.split(".")[0] for name in imports(node)} - set(sys.stdlib_module_names) - local:
                for distribution in by_module.get(module, [module]):
                    found.setdefault(canonical(distribution), set()).add(str(file.relative_to(ROOT)))
    return found


def undeclared(imported: dict[str, set[str]], known: set[str]) -> dict[str, set[str]]:
    return {name: files for name, files in imported.items() if name not in known | UNDECLARED.keys()}


def test_what_the_packages_import_is_declared() -> None:
    imported = foreign("mindseye.py", *INSTALLED)
    assert not undeclared(imported, declared("mlflow", "redis"))


def test_what_only_tests_and_benchmarks_import_is_declared_for_developers() -> None:
    imported = foreign("tests", "benchmarks")
    assert not undeclared(imported, declared("mlflow", "redis", "dev"))


def test_what_is_declared_is_imported_or_has_a_reason() -> None:
    imported = foreign("mindseye.py", *INSTALLED)
    assert declared("mlflow", "redis") <= imported.keys() | NOT_IMPORTED.keys()
    for_developers = imported.keys() | foreign("tests", "benchmarks").keys()
    assert declared("dev") <= for_developers | NOT_IMPORTED.keys()


def test_every_dependency_is_pinned() -> None:
    pins = {canonical(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()}
    assert declared("gpu", "mlflow", "redis", "dev") - {"mindseye"} <= pins


def test_ray_is_bounded_to_the_version_it_was_verified_with() -> None:
    [ray] = [r for r in PROJECT["project"]["dependencies"] if canonical(r) == "ray"]
    pins: Any = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split())
    major, minor = map(int, pins["ray"].split(".")[:2])
    assert ray.endswith(f">={major}.{minor},<{major}.{minor + 1}")


def test_every_file_of_the_packages_is_installed() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    data = {file for package, globs in patterns.items() for glob in globs for file in (ROOT / package).glob(glob)}
    for package in INSTALLED:
        for file in sorted((ROOT / package).rglob("*")):
            name = file.relative_to(ROOT).as_posix()
            if file.is_dir() or {"__pycache__", "work"} & set(file.parts) or name.startswith(tuple(NOT_INSTALLED)):
                continue
            if file.suffix == ".py":
                assert (file.parent / "__init__.py").exists(), f"{file.parent} is no package"
            else:
                assert file in data, f"{file} is in no pattern of package-data"
