"""Which package may import which, and what none may import: the retrieval method is the ground floor."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A package, and what of ours it may import beside itself.
ALLOWED = {
    "retrieval": set(),
    "cluster": {"retrieval"},
    "pipelines": {"retrieval", "cluster"},
    "training": {"retrieval", "cluster"},
    "serving": {"retrieval", "cluster"},
    "demo": {"retrieval", "cluster", "pipelines", "training"},
    "commands": {"retrieval", "cluster", "pipelines", "training", "serving", "demo"},
    "mindseye": {"retrieval", "cluster", "pipelines", "training", "serving", "demo", "commands"},
}
# Files that import names which they only know when they run: the public names, and all our packages in a worker.
BY_NAME = {"mindseye.py", "cluster/imports.py"}
# Not installed: they stand on everything, and nothing stands on them.
OUTSIDE = {"benchmarks", "tests"}
FILES = [
    ROOT / "mindseye.py",
    *(file for package in sorted(ALLOWED) for file in sorted((ROOT / package).rglob("*.py"))),
]
# Reads pickles of data alone, which it subclasses the reader of pickles for: test_unpickle.py.
READS_PICKLES = "retrieval/unpickle.py"
NAMES = [file.relative_to(ROOT).as_posix() for file in FILES]


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and first part of every module that the source imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." if node.level else (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in (
            "import_module",
            "__import__",
            "resolve_name",
        ):
            named = node.args[0]
            yield node.lineno, str(named.value).split(".")[0] if isinstance(named, ast.Constant) else "?"


def faults(package: str, source: str) -> list[str]:
    """Return what a file of ``package`` may not import but does."""
    ours = set(ALLOWED) - ALLOWED[package] - {package}
    forbidden = ours | OUTSIDE | {"pickle", "cloudpickle", "dill", "joblib", "shelve", ".", "?"}
    if package == "retrieval":
        forbidden |= {"ray"}
    return [f"line {line} imports {name}" for line, name in imported(source) if name in forbidden]


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_imports_only_what_lies_below(file: Path) -> None:
    name = file.relative_to(ROOT).as_posix()
    found = faults(name.split("/")[0].removesuffix(".py"), file.read_text(encoding="utf-8"))
    allowed = [" imports ?"] * (name in BY_NAME) + [" imports pickle"] * (name == READS_PICKLES)
    assert [fault for fault in found if not fault.endswith(tuple(allowed))] == []


MODULES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}


def imported_modules(source: str) -> set[str]:
    """Return the modules of ours that a source imports when it is run, wherever in it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys() or {node.module}
    return found & MODULES.keys()


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter({name: imported_modules(MODULES[name].read_text()) - {name} for name in MODULES}).prepare()


@pytest.mark.parametrize(
    "file", [file for file in FILES if file.parts[len(ROOT.parts)] in ("retrieval", "cluster")], ids=str
)
def test_the_ground_names_no_command_and_no_option_of_one(file: Path) -> None:
    """Who calls from Python has none of them. What the command line has for a mistake stands in commands/failure.py."""
    commands = "|".join(path.stem for path in (ROOT / "commands").glob("*.py"))
    options = "address|profile|overwrite|take-over|factory|shards|memory-per-shard|queries|host|port|store|warm|index"
    named = re.findall(rf"mindseye (?:{commands})\b|--(?:{options})\b", file.read_text(encoding="utf-8"))
    assert not named


def test_who_begins_a_job_and_who_only_decodes_do_not_load_pytorch() -> None:
    modules = "commands.index, pipelines.gallery, pipelines.growth, pipelines.index, pipelines.ranking, serving.launch"
    script = f"import sys, {modules}; print(*(name for name in ('torch', 'transformers') if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not done.stdout.strip()


def test_every_package_has_its_floor() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    installed = {pattern.removesuffix("*") for pattern in setuptools["packages"]["find"]["include"]}
    assert installed | {*setuptools["py-modules"]} == set(ALLOWED)
    assert {file.parent.name for file in ROOT.glob("*/__init__.py")} - OUTSIDE <= set(ALLOWED)
    assert {name.split("/")[0].removesuffix(".py") for name in NAMES} == set(ALLOWED)


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("retrieval", "import ray.data"),
        ("retrieval", "def f():\n    from cluster.profile import Profile"),
        ("cluster", "from pipelines import gallery"),
        ("serving", "import numpy, training.fit"),
        ("demo", "from serving.app import build"),
        ("pipelines", "from pickle import loads"),
        ("pipelines", "from .gallery import build_gallery"),
        ("pipelines", "from tests.tiny_models import write_vlm"),
        ("cluster", "import importlib\nimportlib.import_module('mindseye')"),
    ],
)
def test_a_forbidden_import_is_seen(package: str, line: str) -> None:
    assert len(faults(package, line)) == 1
