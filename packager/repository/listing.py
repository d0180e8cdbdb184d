"""What a repository lists: families, releases, rollouts, the fleet, and where each role stands.

Rule: what is staged hides what is published, save where a name says `published`. Nothing here changes anything.
"""

import hashlib
import time
from pathlib import Path

from bundle.fleet import FLEET_TARGET, Cohort, Fleet, parse_fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.rollout import Rollout, parse_rollout
from bundle.trust.role_names import FLEET_ROLE, release_role, release_target, rollout_role, rollout_target
from packager.errors import FamilyUnknown, RepositoryMissing, StagingInvalid
from packager.repository import tuf_documents
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments
from packager.repository.repository_status import RepositoryStatus, repository_status
from packager.repository.staged_view import StagedView
from packager.repository.staging import Staging


class RepositoryListing:
    """The repository in a folder, to be read; see packager.repository.layout."""

    def __init__(self, root: Path) -> None:
        self._layout = RepositoryLayout(root)

    @property
    def root(self) -> Path:
        """Its folder."""
        return self._layout.root

    @property
    def layout(self) -> RepositoryLayout:
        """Where things lie, for packager.repository.role_changes."""
        return self._layout

    @property
    def published(self) -> Path:
        """The folder to serve."""
        return self._layout.published

    @property
    def registry_path(self) -> Path:
        """The device registry's file; not served."""
        return self._layout.registry

    @property
    def repository_id(self) -> str:
        """SHA-256 of the first root's bytes, hexadecimal. Raises RepositoryMissing."""
        first = self._layout.metadata / "1.root.json"
        if not first.exists():
            raise RepositoryMissing(
                f"{first} is missing: nothing is published yet",
                hint="`packager repo status` shows whose signatures the first publication waits for",
            )
        return hashlib.sha256(first.read_bytes()).hexdigest()

    def families(self) -> tuple[str, ...]:
        """Delegated families, staged ones included."""
        return tuf_documents.families_of(StagedView(self._layout).targets)

    def fleet(self) -> Fleet:
        """The staged, else the published fleet document. Raises StagingInvalid if there is none."""
        data = StagedView(self._layout).target(FLEET_ROLE, FLEET_TARGET)
        if data is None:
            raise StagingInvalid("the repository has no fleet document yet", hint="`packager device epoch` makes one")
        return parse_fleet(data)

    def manifest(self, family: str, version: str) -> Manifest | None:
        """A listed release, staged ones included, or None. Raises FamilyUnknown."""
        data = self._staged_view(family).target(release_role(family), release_target(family, version))
        return None if data is None else parse_manifest(data)

    def published_manifest(self, family: str, version: str) -> Manifest | None:
        """A release that devices can see, or None. Raises FamilyUnknown."""
        data = self._staged_view(family).published_target(release_role(family), release_target(family, version))
        return None if data is None else parse_manifest(data)

    def published_rollout(self, family: str, channel: str) -> Rollout | None:
        """What devices see that a channel runs, or None. Raises FamilyUnknown."""
        data = self._staged_view(family).published_target(rollout_role(family), rollout_target(family, channel))
        return None if data is None else parse_rollout(data)

    def releases(self, family: str) -> tuple[Manifest, ...]:
        """All listed releases, staged ones included, by counter. Raises FamilyUnknown."""
        view, role = self._staged_view(family), release_role(family)
        found = [parse_manifest(data) for data in (view.target(role, name) for name in view.target_names(role)) if data]
        return tuple(sorted(found, key=lambda manifest: manifest.counter))

    def rollout(self, family: str, channel: str) -> Rollout | None:
        """What a channel runs, staged or published, or None. Raises FamilyUnknown."""
        data = self._staged_view(family).target(rollout_role(family), rollout_target(family, channel))
        return None if data is None else parse_rollout(data)

    def rollouts(self, family: str) -> tuple[Rollout, ...]:
        """Of all channels, by name. Raises FamilyUnknown."""
        view, role = self._staged_view(family), rollout_role(family)
        return tuple(
            parse_rollout(data) for data in (view.target(role, name) for name in view.target_names(role)) if data
        )

    def next_counter(self, family: str) -> int:
        """One more than the highest listed counter."""
        return max((manifest.counter for manifest in self.releases(family)), default=0) + 1

    def status(self) -> RepositoryStatus:
        """Every role: keys, threshold, expiry, what is staged."""
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
                f"family {family!r} is not delegated, found {', '.join(known) or 'none'}",
                hint="`packager keys family add` delegates one",
            )
        return view
