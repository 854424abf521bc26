"""What is checked on one node of a cluster: its software, its hardware, and what it reaches."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ray

from cluster.doctor import SHARED_MEMORY, Check
from cluster.imports import PACKAGES
from cluster.model_files import find_model
from cluster.nodes import Node
from cluster.profile import Profile
from cluster.ray_env import NODE, differing
from retrieval.errors import UserError
from retrieval.folder import Folder
from retrieval.index.cache import BYTES, FOLDER, Unusable, cache_bound, cache_folder

GIB = 2**30
LEAST_FREE = 2 * GIB
FULL = 0.95
"""Of a disk: from there on Ray spills no more objects to it."""
SAME_AS_HERE = ("Python", "mindseye", "ray", "torch", "faiss")
"""What must be of one version wherever a job runs, each in a line of its own."""


@dataclass(frozen=True)
class Software:
    """What a process runs on: versions by name, and what it was started with of the variables that it was asked for."""

    versions: dict[str, str]
    environ: dict[str, str]


@dataclass(frozen=True)
class Probe:
    """A URI that every node must reach, and a file in it that has been written for them to find; None where writing
    failed.
    """

    uri: str
    file: str | None


def software() -> Callable[[], tuple[dict[str, str], dict[str, str]]]:
    """Return a function that returns the fields of ``Software`` of the process that calls it.

    It needs nothing of mindseye's, which a node may lack, or have of another version: as a nested function it is sent
    whole.
    """
    packages = ("torchvision", "diffusers", "transformers", "open_clip_torch", "timm", "pyarrow", "numpy")
    ours, names = PACKAGES, tuple(NODE)

    def look() -> tuple[dict[str, str], dict[str, str]]:
        import hashlib
        import os
        import platform
        from importlib.metadata import PackageNotFoundError, version
        from importlib.util import find_spec
        from pathlib import Path

        def installed(package: str) -> str:
            try:
                return version(package).partition("+")[0]  # which CUDA it was built for may differ between nodes
            except PackageNotFoundError:
                return "not installed"

        found = {"Python": platform.python_version()}
        home = find_spec("mindseye")
        if home and home.origin:
            folder = Path(home.origin).parent
            digest = hashlib.sha256()
            for file in sorted(file for package in ours for file in (folder / package).rglob("*.py")):
                digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
            found["mindseye"] = f"{installed('mindseye')}, source {digest.hexdigest()[:8]}"
        else:
            found["mindseye"] = "not installed"
        found |= {package: installed(package) for package in ("ray", "torch")}
        builds = {build: installed(build) for build in ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12")}
        there = [each for each in builds.values() if each != "not installed"]
        found["faiss"] = there[0].split(".post")[0] if there else "not installed"
        found |= {package: installed(package) for package in packages}
        try:
            raw = Path("/proc/self/environ").read_bytes()
            environ = dict(entry.split("=", 1) for entry in os.fsdecode(raw).split("\0") if "=" in entry)
        except FileNotFoundError:  # not Linux
            environ = dict(os.environ)
        return found, {name: environ[name] for name in names if name in environ}

    return look


def compare(there: Software, here: Software) -> Iterator[Check]:
    """Compare a node with the machine that asks, and its environment with what every node's must hold."""
    same = "install on every node what this machine has: the same image, or constraints.txt and the same checkout"
    for name in SAME_AS_HERE:
        found, expected = there.versions[name], here.versions[name]
        ok = found == expected and found != "not installed"
        yield Check(name, ok, found if ok else f"{found}; here {expected}", same)
    others = {name: version for name, version in there.versions.items() if name not in SAME_AS_HERE}
    different = [
        f"{name} {found} (here {here.versions[name]})" for name, found in others.items() if found != here.versions[name]
    ]
    said = ", ".join(different) or ", ".join(f"{name} {version}" for name, version in others.items())
    yield Check("other packages", not different, said, same)
    wrong = [
        f"{name} is {found or 'not set'}, not {value}" for name, (found, value) in differing(there.environ).items()
    ]
    remedy = "start Ray on that node with the variables of cluster/node.env in its environment"
    yield Check("environment", not wrong, "; ".join(wrong) or f"all {len(NODE)} variables are set", remedy)


def inspect(node: Node, profile: Profile | None, probes: list[Probe]) -> list[Check]:
    """Check the node that this runs on, without loading or downloading a model."""
    checks = [_token(), _gpus(node), _faiss(node, profile), _disk(node), _shards(), _shared_memory(node)]
    return [*checks, *(_models(profile) if profile else []), *(check for probe in probes for check in _reach(probe))]


def _token() -> Check:
    on = ray._raylet.get_authentication_mode() == ray._raylet.AuthenticationMode.TOKEN  # no public function says it
    remedy = "start Ray on every node with RAY_AUTH_MODE=token and one token (docs/security.md)"
    return Check("authentication", on, "by token" if on else "off: who reaches its ports owns the machine", remedy)


def _gpus(node: Node) -> Check:
    import torch

    seen, counted = torch.cuda.device_count(), node.gpu.total
    found = ", ".join(sorted({torch.cuda.get_device_name(i) for i in range(seen)}))
    said = f"{seen} × {found}" if seen else "none"
    if seen == counted:
        return Check("GPUs", True, said)
    if counted > seen:
        remedy = "see that nvidia-smi and torch.cuda.is_available() work there, or start Ray with the right --num-gpus"
    else:
        remedy = "start Ray there without --num-gpus, which then counts them itself"
    return Check("GPUs", False, f"PyTorch {torch.__version__} sees {said}, and Ray counts {counted:g}", remedy)


def _faiss(node: Node, profile: Profile | None) -> Check:
    try:
        import faiss
    except ImportError as error:
        return Check("FAISS build", False, str(error), "install faiss-cpu, or faiss-gpu in its place")
    gpu = hasattr(faiss, "StandardGpuResources")
    said = f"{'with GPU' if gpu else 'CPU'}, {faiss.get_compile_options().strip()}"
    needed = profile is not None and profile.index.gpus > 0 and node.gpu.total > 0
    if needed and not gpu:
        remedy = "install faiss-gpu there in the place of faiss-cpu (docs/how-it-works.md), or set index.gpus to 0"
        return Check("FAISS build", False, f"{said}; the profile trains indexes on GPUs", remedy)
    return Check("FAISS build", True, said)


def _disk(node: Node) -> Check:
    disk = shutil.disk_usage(node.temp)
    temp = Path(node.temp).parent
    ok = disk.free >= LEAST_FREE and disk.free > (1 - FULL) * disk.total
    remedy = "free some space, or start Ray there with a --temp-dir on a larger disk: objects spill to it"
    return Check("disk", ok, f"{_roughly(disk.free, ok)} free for Ray, in {temp}", remedy)


def _shards() -> Check:
    remedy = f"name a folder on a disk of that node in {FOLDER}, or make room there: each replica downloads shards anew"
    try:
        folder, bound = cache_folder(), cache_bound()
    except (Unusable, UserError) as error:
        return Check("shard cache", False, str(error), remedy)
    if bound == 0:
        return Check("shard cache", True, f"off, by {BYTES}")
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    ok = os.access(there, os.W_OK | os.X_OK) and free >= LEAST_FREE
    said = (
        f"{_roughly(free, ok)} free in {folder}"
        if os.access(there, os.W_OK | os.X_OK)
        else f"{folder} cannot be written to"
    )
    return Check("shard cache", ok, said, remedy)


def _shared_memory(node: Node) -> Check:
    if not SHARED_MEMORY.is_dir():
        return Check("shared memory", True, f"no {SHARED_MEMORY} on this system")
    total, store = shutil.disk_usage(SHARED_MEMORY).total, node.object_store.total
    said = f"an object store of {store / GIB:.1f} GiB, and {total / GIB:.1f} GiB in {SHARED_MEMORY}"
    remedy = (
        f"start its container with --shm-size of {store / GIB:.0f} GiB or more, or Ray with less --object-store-memory"
    )
    return Check("shared memory", total >= store, said, remedy)


def _models(profile: Profile) -> Iterator[Check]:
    models = profile.models
    generator = [("generator", models.generator.uri)] if models.generator else []
    for role, uri in (("vlm", models.vlm), ("vision", models.vision), *generator):
        try:
            yield Check(role, True, f"{uri}, {find_model(role, uri)}")
        except UserError as error:
            remedy = f"put the model there, let the node reach the hub, or correct models.{role} in the profile"
            yield Check(role, False, f"{uri}: {error}", remedy)
    for what, place in (("aggregator", models.aggregator), ("composer", models.composer)):
        if not place:
            continue
        remedy = f"put it where every node has it, or correct models.{what} in the profile"
        try:
            there = Folder(place).exists("manifest.json")
        except (OSError, UserError) as error:
            yield Check(what, False, f"{place}: {first_line(error)}", remedy)
        else:
            yield Check(what, there, f"{place}{'' if there else ' is not there'}", remedy)


def _reach(probe: Probe) -> Iterator[Check]:
    """Read what was written for all nodes, then write and delete a file; in a folder that others do not see, none."""
    what = f"read {probe.uri}"
    remedy = "see that the node has the credentials, the network and, of a path, the same disk as this machine"
    try:
        folder = Folder(probe.uri)
        if probe.file:
            folder.read_bytes(probe.file)
        elif not folder.exists():
            yield Check(what, False, "it is not there", remedy)
            return
    except FileNotFoundError:
        yield Check(what, False, "a file that was written to it elsewhere is not there: another disk?", remedy)
        return
    except (OSError, UserError) as error:
        yield Check(what, False, first_line(error), remedy)
        return
    yield Check(what, True, "readable")
    yield write_and_delete(probe.uri)[0]


def write_and_delete(uri: str, *, keep: bool = False) -> tuple[Check, str | None]:
    """Write a file to a URI, and delete it unless it is to be kept; return how that went, and the file that is kept."""
    name, what = f".mindseye-doctor-{uuid.uuid4().hex}", f"write {uri}"
    remedy = "a source may stay so; for a target, give the cluster the right to write and to delete"
    try:
        folder = Folder(uri)
        folder.write_bytes(name, b"a probe")
        if not keep:
            folder.delete(name)
    except (OSError, UserError) as error:
        return Check(what, False, first_line(error), remedy), None
    return Check(what, True, "writable"), name if keep else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _roughly(free: float, ok: bool) -> str:
    """Return a size; a comfortable one as a round figure that it exceeds, such that nodes alike say the same."""
    if not ok:
        return f"{free / GIB:.1f} GiB"
    steps = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    return f"over {max(step for step in steps if step * GIB <= free):,} GiB"
