"""What no version of an index uses any more is deleted, from the index and from its gallery."""

from __future__ import annotations

from cluster.hold import check_held
from pipelines.batches import overwritten_batches
from retrieval.artifacts import MANIFEST, Gallery, Index
from retrieval.artifacts.index import PLAN, published_versions, version_states
from retrieval.errors import UserError
from retrieval.folder import Folder


def prune(gallery: Gallery, root: Folder, keep: int) -> list[str]:
    """Delete all but the newest ``keep`` versions, what only they use, and what nothing uses any more.

    Raises:
        UserError: ``keep`` is below 1.

    Returns:
        What was deleted, relative to the target.
    """
    if keep < 1:
        raise UserError(f"at least one version must be kept, not {keep}", code="nothing-kept", field="keep")
    published = published_versions(root)
    kept = [Index.open(root / name) for name in published[-keep:]]
    needed = {(record.version, record.name) for index in kept for record in index.manifest.shards}
    check_held(root)
    deleted = []
    for name, state in version_states(root).items():
        version = root / name
        if name in published[-keep:] or state == "unfinished":
            continue
        version.delete(PLAN)  # first: without a manifest, a plan is that of a build to resume
        version.delete(MANIFEST)
        for shard in version.folders():
            if (name, shard) not in needed:
                version.delete(shard)
                version.delete(f"{shard}.json")
                deleted.append(f"{root.name}/{name}/{shard}")
        if not any(of == name for of, _ in needed):
            version.delete()
            deleted.append(f"{root.name}/{name}")
    return deleted + _pruned_gallery(gallery)


def _pruned_gallery(gallery: Gallery) -> list[str]:
    folder, used = gallery.folder, set(gallery.parts())
    deleted = []
    for batch in overwritten_batches(folder):
        batch.delete()
        deleted.append(f"{folder.name}/{Gallery.batch(batch.name)}")
    for name in gallery.manifest.sources:
        (folder / Gallery.batch(name)).delete("checkpoint")
        for file in folder.files(Gallery.batch(name, "parts"), Gallery.EMBEDDED):
            if file not in used:
                folder.delete(file)
                deleted.append(f"{folder.name}/{file}")
        for file in folder.files(Gallery.batch(name, "parts"), ".partial"):  # of a worker that was lost
            folder.delete(file)
    return deleted
