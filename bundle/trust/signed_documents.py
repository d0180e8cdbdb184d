"""The documents that the delegated roles list: rollout, manifest, plan and fleet.

This is step 5 of the theory of operation in bundle.trust.check: a document counts only if the role that owns its kind
lists it. Its length and digest are those of the metadata.
"""

from tuf.api.metadata import TargetFile, Targets

from bundle.errors import NoRollout, UntrustedMetadata
from bundle.fleet import FLEET_TARGET, MAX_FLEET_BYTES, Fleet, parse_fleet
from bundle.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from bundle.plan import MAX_PLAN_BYTES, Plan, parse_plan
from bundle.rollout import MAX_ROLLOUT_BYTES, Rollout, parse_rollout
from bundle.trust.check_request import CheckRequest
from bundle.trust.offline_pack import check_pack_role
from bundle.trust.role_names import (
    FLEET_ROLE,
    plan_target,
    release_role,
    release_target,
    rollout_role,
    rollout_target,
)
from bundle.trust.role_versions import channel_unknown
from bundle.trust.updater import TrustedUpdater, translate_errors


class SignedDocuments:
    """Reads the documents of one check.

    Args:
        updater: the client of the check, which has refreshed the metadata.
        request: family and channel of the check.

    Raises:
        DigestMismatch, DownloadFailed, TooLarge: a file cannot be read, or is another one. Any method can raise these.
        Malformed: a document does not follow its schema. Any method can raise it.
        UntrustedMetadata: another role lists the document, or too few keys signed the role. Any method can raise it.
    """

    def __init__(self, updater: TrustedUpdater, request: CheckRequest) -> None:
        self._updater, self._request = updater, request

    def read_rollout(self) -> Rollout:
        """Return the rollout of the channel.

        Raises:
            NoRollout: the repository has none.
            OfflinePackRefused: the rollout of an offline pack came from a server, or is valid for too long.
        """
        request = self._request
        role = rollout_role(request.family)
        target = self._find_target(role, rollout_target(request.family, request.channel))
        if target is None:
            raise channel_unknown(self._updater, role, request.family, request.channel)
        data = self._read_target(target, f"{request.family}.{request.channel}.rollout.json", MAX_ROLLOUT_BYTES)
        rollout = parse_rollout(data)
        check_pack_role(role, self._updater.verified_document(role), self._updater.root, request.metadata_url)
        return rollout

    def find_manifest(self, rollout: Rollout) -> TargetFile | None:
        """Return the target of the release that the rollout names, or None if it is not listed."""
        family = self._request.family
        return self._find_target(release_role(family), release_target(family, rollout.version))

    def read_manifest(self, target: TargetFile) -> Manifest:
        """Return the manifest that `find_manifest` found."""
        return parse_manifest(self._read_target(target, f"{self._request.family}.manifest.json", MAX_MANIFEST_BYTES))

    def read_plan(self) -> Plan | None:
        """Return the plan that the release role lists for the channel, or None."""
        family, channel = self._request.family, self._request.channel
        target = self._find_target(release_role(family), plan_target(family, channel))
        if target is None:
            return None
        return parse_plan(self._read_target(target, f"{family}.{channel}.plan.json", MAX_PLAN_BYTES))

    def read_fleet(self) -> Fleet:
        """Return the fleet document.

        Raises:
            NoRollout: the repository has none yet.
        """
        target = self._find_target(FLEET_ROLE, FLEET_TARGET)
        if target is None:
            raise NoRollout("the repository has no fleet document yet")
        return parse_fleet(self._read_target(target, "fleet.json", MAX_FLEET_BYTES))

    def _find_target(self, role: str, name: str) -> TargetFile | None:
        with translate_errors(self._updater):
            found = self._updater.get_targetinfo(name)
            self._updater.load_delegated(role)
        listed = self._updater.verified_document(role)
        assert isinstance(listed, Targets)
        if found is not None and listed.targets.get(name) != found:
            raise UntrustedMetadata(f"{name!r} is listed by another role than {role!r}")
        return found

    def _read_target(self, target: TargetFile, name: str, max_bytes: int) -> bytes:
        return self._updater.read_target(target, self._request.cache_dir / "documents" / name, max_bytes)
