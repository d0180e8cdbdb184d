"""Names that trust rests on: roles, targets, and the extra fields of our TUF metadata."""

from typing import Final

COUNTER_EPOCH_FIELD: Final = "x-counter-epoch"  # in the delegation of release-<family>
REPOSITORY_ID_FIELD: Final = "x-repository-id"  # in every root after the first
PACK_FIELD: Final = "x-pack"  # in the online roles of an offline pack
PACK_MAX_DAYS_FIELD: Final = "x-pack-max-days"  # in root
FLEET_ROLE: Final = "fleet"


def release_role(family: str) -> str:
    """The role that signs a family's manifests."""
    return f"release-{family}"


def rollout_role(family: str) -> str:
    """The role that signs a family's rollouts."""
    return f"rollout-{family}"


def release_target(family: str, version: str) -> str:
    """Name of a manifest's target."""
    return f"bundles/{family}/{version}.json"


def rollout_target(family: str, channel: str) -> str:
    """Name of a rollout's target."""
    return f"rollouts/{family}/{channel}.json"
