"""Staged targets over published ones: what the repository will list after the next publication."""

from tuf.api.metadata import Targets

from packager.errors import RepositoryMissing
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments, effective_document
from packager.repository.staging import Staging


class StagedView:
    """The published and the staged state, read once at construction.

    Args:
        layout: the repository's paths.

    Raises:
        RepositoryDamaged: a published or staged file is damaged.
    """

    def __init__(self, layout: RepositoryLayout) -> None:
        self.published = PublishedDocuments(layout)
        self.staging = Staging(layout)

    @property
    def targets(self) -> Targets:
        """The staged `targets` document, else the published one. Raises RepositoryMissing if there is neither."""
        document = effective_document(self.published, self.staging.documents, "targets")
        if document is None or not isinstance(document.signed, Targets):
            raise RepositoryMissing("the repository has no targets role", hint="create it with `packager repo init`")
        return document.signed

    def target_names(self, role: str) -> tuple[str, ...]:
        """List the names of a role's targets, sorted; staged ones included, withdrawn ones excluded."""
        published = set(self.published.role(role).targets) if role in self.published.documents else set()
        kind, _, family = role.partition("-")
        prefix = {"release": f"bundles/{family}/", "rollout": f"rollouts/{family}/", "fleet": "fleet/"}[kind]
        staged = {name for name in self.staging.targets if name.startswith(prefix)}
        return tuple(sorted((published | staged) - self.staging.withdrawn))

    def target(self, role: str, name: str) -> bytes | None:
        """Return the content of a staged or published target; None if it is not listed or withdrawn.

        Args:
            role: name of the role that lists it.
            name: name of the target.

        Raises:
            RepositoryDamaged: the published file is missing or damaged.
        """
        if name in self.staging.targets:
            return self.staging.targets[name]
        return None if name in self.staging.withdrawn else self.published_target(role, name)

    def published_target(self, role: str, name: str) -> bytes | None:
        """Return the content of a target as devices see it; None if it is not listed.

        Args:
            role: name of the role that lists it.
            name: name of the target.

        Raises:
            RepositoryDamaged: the published file is missing or damaged.
        """
        if role not in self.published.documents:
            return None
        listed = self.published.role(role).targets.get(name)
        return None if listed is None else self.published.target(listed)
