"""Which artifacts go together: those of the same models, and measured on other labels than were learned from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retrieval.artifacts.artifact import Artifact
from retrieval.artifacts.manifests import ModelRecord, Role
from retrieval.errors import UserError


def check_same_models(a: Artifact[Any], b: Artifact[Any], roles: Sequence[Role]) -> None:
    """Refuse artifacts that were made by different models.

    Raises:
        UserError: the models of a role differ (code ``other-model``: role, artifacts, URIs and fingerprints are named),
            or one of the artifacts does not say which it was (``unknown-model``). The field is the role.
    """
    for role in roles:
        ours, theirs = recorded(a, role), recorded(b, role)
        if ours.fingerprint != theirs.fingerprint:
            raise UserError(
                f"the {role} models differ, so these two cannot be used together:\n"
                f"  {a.kind} {a.uri}: {ours.uri} ({ours.fingerprint})\n"
                f"  {b.kind} {b.uri}: {theirs.uri} ({theirs.fingerprint})\n"
                f"Make one of them again with the other's model.",
                code="other-model",
                field=role,
            )


def check_made_by(artifact: Artifact[Any], role: Role, uri: str, fingerprint: str) -> None:
    """Refuse an artifact that was made by another model than the one that is loaded.

    Args:
        artifact: any that names its models.
        role: of the loaded model.
        uri: of the loaded model, for the message.
        fingerprint: of the loaded model.

    Raises:
        UserError: it was another model (code ``other-model``: both are named), or the artifact does not say which
            (``unknown-model``). The field is the role.
    """
    record = recorded(artifact, role)
    if record.fingerprint != fingerprint:
        raise UserError(
            f"the {artifact.kind} {artifact.uri} was made by the {role} model {record.uri} ({record.fingerprint}),"
            f" the profile has {uri} ({fingerprint}): vectors of different models cannot be compared."
            " Use the profile that it was made with",
            code="other-model",
            field=role,
        )


def check_disjoint(learned: Sequence[str], evaluated: set[str], where: str) -> None:
    """Refuse labels that an aggregator learned from and is measured on.

    Args:
        learned: labels of the training set.
        evaluated: labels of the evaluation set.
        where: the evaluation set, for the message.

    Raises:
        UserError: both have some (code ``overlap``, field ``label``); the first ten are named.
    """
    if both := sorted(set(learned) & evaluated):
        raise UserError(
            f"{len(both)} labels of the training set are also in the evaluation set {where}: {', '.join(both[:10])}"
            f"{' …' if len(both) > 10 else ''}. Leave them out of one of the two: accuracy on labels that were"
            " learned from says nothing about others.",
            code="overlap",
            field="label",
        )


def recorded(artifact: Artifact[Any], role: Role) -> ModelRecord:
    """Return what a manifest says of the model of a role.

    Raises:
        UserError: nothing (code ``unknown-model``, field the role).
    """
    record = artifact.manifest.models.get(role)
    if record is None:
        raise UserError(
            f"the {artifact.kind} at {artifact.uri} does not say which {role} model made it",
            code="unknown-model",
            field=role,
        )
    return record
