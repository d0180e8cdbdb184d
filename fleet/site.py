"""The repository that a collector serves, as far as it needs it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bundle.rollout import Rollout
from fleet.follower_look import FollowerLook


@dataclass(frozen=True, slots=True)
class Site:
    """Facts of the repository.

    Attributes:
        repository_id: its id, 64 hexadecimal digits.
        registry: path of the device registry.
        registry_digest: digest that the fleet document signs, hexadecimal.
        rollouts: the rollouts of all families and channels.
        looks: the follower's last looks at planned rollouts.
    """

    repository_id: str
    registry: Path
    registry_digest: str
    rollouts: tuple[Rollout, ...]
    looks: tuple[FollowerLook, ...] = ()


ReadSite = Callable[[], Site]
"""Read the facts anew: the repository changes while the collector runs."""
