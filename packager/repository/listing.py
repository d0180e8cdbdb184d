"""Read what a repository lists: families, releases, rollouts, fleet document, status of roles.

A staged target takes precedence over the published one, except in functions named `published_...`. Nothing in this
module changes the repository.
"""

import time
from pathlib import Path

from bundle.fleet import FLEET_TARGET, Cohort, Fleet, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.plan import Plan, parse_plan
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.repository_id import repository_id_of
from bundle.trust.role_names import (
    FLEET_ROLE,
    is_plan_target,
    plan_target,
    release_role,
    release_target,
    rollout_role,
    rollout_target,
)
from packager.errors import FamilyUnknown, RepositoryMissing, StagingInvalid
from packager.repository import tuf_documents
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments
from packager.repository.repository_status import RepositoryStatus, repository_status
from packager.repository.staged_view import StagedView
from packager.repository.staging import Staging


class RepositoryListing:
    """The readable part of a repository.

    Args:
        root: the repository's folder (packager.repository.layout).
    """

    def __init__(self, root: Path) -> None:
        self._layout = RepositoryLayout(root)

    @property
    def root(self) -> Path:
        """The folder of the repository."""
        return self._layout.root

    @property
    def layout(self) -> RepositoryLayout:
        """The paths below the repository's folder."""
        return self._layout

    @property
    def published(self) -> Path:
        """The folder to serve."""
        return self._layout.published

    @property
    def registry_path(self) -> Path:
        """The device registry's file; it is not served."""
        return self._layout.registry

    @property
    def repository_id(self) -> str:
        """The repository id (`bundle.trust.repository_id`).

        Raises:
            RepositoryMissing: nothing is published yet.
        """
        first = self._layout.metadata / "1.root.json"
        if not first.exists():
            raise RepositoryMissing(
                f"{first} is missing: nothing is published yet",
                hint="see which signatures the first publication still needs: `packager repo status`",
            )
        return repository_id_of(first.read_bytes())

    def families(self) -> tuple[str, ...]:
        """List the delegated families, sorted, staged ones included."""
        return tuf_documents.families_of(StagedView(self._layout).targets)

    def fleet(self) -> Fleet:
        """Return the staged fleet document, else the published one.

        Raises:
            StagingInvalid: there is neither.
        """
        data = StagedView(self._layout).target(FLEET_ROLE, FLEET_TARGET)
        if data is None:
            raise StagingInvalid(
                "the repository has no fleet document yet", hint="create one with `packager device rotate-cohort`"
            )
        return parse_fleet(data)

    def published_fleet(self) -> Fleet:
        """Return the fleet document as devices see it.

        Raises:
            StagingInvalid: none is published.
        """
        data = StagedView(self._layout).published_target(FLEET_ROLE, FLEET_TARGET)
        if data is None:
            raise StagingInvalid(
                "no fleet document is published yet", hint="create one with `packager device rotate-cohort`"
            )
        return parse_fleet(data)

    def manifest(self, family: str, version: str) -> Manifest | None:
        """Return the manifest of a listed release, staged ones included, or None.

        Args:
            family: a delegated family.
            version: version of the release.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).target(release_role(family), release_target(family, version))
        return None if data is None else parse_manifest(data)

    def published_manifest(self, family: str, version: str) -> Manifest | None:
        """Return the manifest of a release that devices can see, or None.

        Args:
            family: a delegated family.
            version: version of the release.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).published_target(release_role(family), release_target(family, version))
        return None if data is None else parse_manifest(data)

    def published_rollout(self, family: str, channel: str) -> Rollout | None:
        """Return the rollout of a channel as devices see it, or None.

        Args:
            family: a delegated family.
            channel: name of the channel.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).published_target(rollout_role(family), rollout_target(family, channel))
        return None if data is None else parse_rollout(data)

    def plan(self, family: str, channel: str) -> Plan | None:
        """Return the staged plan of a channel, else the published one, or None.

        Args:
            family: a delegated family.
            channel: name of the channel.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).target(release_role(family), plan_target(family, channel))
        return None if data is None else parse_plan(data)

    def published_plan(self, family: str, channel: str) -> Plan | None:
        """Return the plan of a channel as devices see it, or None.

        Args:
            family: a delegated family.
            channel: name of the channel.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).published_target(release_role(family), plan_target(family, channel))
        return None if data is None else parse_plan(data)

    def releases(self, family: str) -> tuple[Manifest, ...]:
        """List the manifests of a family's releases, staged ones included, sorted by counter.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        view, role = self._staged_view(family), release_role(family)
        names = [name for name in view.target_names(role) if not is_plan_target(name)]
        found = [parse_manifest(data) for data in (view.target(role, name) for name in names) if data]
        return tuple(sorted(found, key=lambda manifest: manifest.counter))

    def rollout(self, family: str, channel: str) -> Rollout | None:
        """Return the staged rollout of a channel, else the published one, or None.

        Args:
            family: a delegated family.
            channel: name of the channel.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        data = self._staged_view(family).target(rollout_role(family), rollout_target(family, channel))
        return None if data is None else parse_rollout(data)

    def rollouts(self, family: str) -> tuple[Rollout, ...]:
        """List the rollouts of a family's channels, staged ones included, sorted by channel.

        Raises:
            FamilyUnknown: the family is not delegated.
        """
        view, role = self._staged_view(family), rollout_role(family)
        return tuple(
            parse_rollout(data) for data in (view.target(role, name) for name in view.target_names(role)) if data
        )

    def next_counter(self, family: str) -> int:
        """Return one more than the highest counter of the family's listed releases."""
        return max((manifest.counter for manifest in self.releases(family)), default=0) + 1

    def status(self) -> RepositoryStatus:
        """Return keys, threshold and expiry of each role, and the staged changes."""
        return repository_status(PublishedDocuments(self._layout), Staging(self._layout), int(time.time()))

    def _cohorts(self) -> tuple[Cohort, ...]:
        try:
            return self.fleet().cohorts
        except StagingInvalid:
            return ()

    def _staged_view(self, family: str) -> StagedView:
        view = StagedView(self._layout)
        known = tuf_documents.families_of(view.targets)
        if family not in known:
            raise FamilyUnknown(
                f"family {family!r} is not delegated, delegated families: {', '.join(known) or 'none'}",
                hint="correct the name, or delegate the family with `packager keys family add`",
            )
        return view
