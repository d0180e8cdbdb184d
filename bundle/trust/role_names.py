"""Names of TUF roles, targets and our extra fields in TUF metadata (docs/format.md, Repository)."""

from typing import Final

COUNTER_EPOCH_FIELD: Final = "x-counter-epoch"  # in the delegation of release-<family>
REPOSITORY_ID_FIELD: Final = "x-repository-id"  # in every root after the first
PACK_FIELD: Final = "x-pack"  # in the online roles of an offline pack
PACK_MAX_DAYS_FIELD: Final = "x-pack-max-days"  # in root
COPIES_FIELD: Final = "x-copies"  # in timestamp: which archives exist (bundle.trust.document_source)
FLEET_ROLE: Final = "fleet"
PLAN_SUFFIX: Final = ".plan.json"


def release_role(family: str) -> str:
    """Return the name of the role that signs a family's manifests."""
    return f"release-{family}"


def rollout_role(family: str) -> str:
    """Return the name of the role that signs a family's rollouts."""
    return f"rollout-{family}"


def release_target(family: str, version: str) -> str:
    """Return the name of the target that is a release's manifest.

    Args:
        family: the family of the release.
        version: the version of the release.
    """
    return f"bundles/{family}/{version}.json"


def plan_target(family: str, channel: str) -> str:
    """Return the name of the target that is the plan of a channel; the release role lists it.

    Args:
        family: the family of the plan.
        channel: the channel of the plan.
    """
    return f"bundles/{family}/{channel}{PLAN_SUFFIX}"


def is_plan_target(name: str) -> bool:
    """Return whether a target of a release role is a plan; else it is a manifest."""
    return name.endswith(PLAN_SUFFIX)


def rollout_target(family: str, channel: str) -> str:
    """Return the name of the target that is a channel's rollout.

    Args:
        family: the family of the rollout.
        channel: the channel of the rollout.
    """
    return f"rollouts/{family}/{channel}.json"
