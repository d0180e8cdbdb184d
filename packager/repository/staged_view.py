"""The repository as it will be: what is staged over what is published. One look, taken once."""

from tuf.api.metadata import Targets

from packager.errors import RepositoryMissing
from packager.repository.layout import RepositoryLayout
from packager.repository.published import PublishedDocuments, effective_document
from packager.repository.staging import Staging


class StagedView:
    """Published and staged state at one moment. Raises RepositoryDamaged."""

    def __init__(self, layout: RepositoryLayout) -> None:
        self.published = PublishedDocuments(layout)
        self.staging = Staging(layout)

    @property
    def targets(self) -> Targets:
        """The effective `targets`. Raises RepositoryMissing."""
        held = effective_document(self.published, self.staging.documents, "targets")
        if held is None or not isinstance(held.signed, Targets):
            raise RepositoryMissing("the repository has no targets role")
        return held.signed

    def target_names(self, role: str) -> tuple[str, ...]:
        """Names of the targets that a role lists, sorted."""
        held = set(self.published.role(role).targets) if role in self.published.documents else set()
        kind, _, family = role.partition("-")
        prefix = {"release": f"bundles/{family}/", "rollout": f"rollouts/{family}/", "fleet": "fleet/"}[kind]
        staged = {name for name in self.staging.targets if name.startswith(prefix)}
        return tuple(sorted((held | staged) - self.staging.withdrawn))

    def target(self, role: str, name: str) -> bytes | None:
        """Content of a target, or None. Raises RepositoryDamaged."""
        if name in self.staging.targets:
            return self.staging.targets[name]
        return None if name in self.staging.withdrawn else self.published_target(role, name)

    def published_target(self, role: str, name: str) -> bytes | None:
        """Content of a target that devices see, or None. Raises RepositoryDamaged."""
        if role not in self.published.documents:
            return None
        listed = self.published.role(role).targets.get(name)
        return None if listed is None else self.published.target(listed)
