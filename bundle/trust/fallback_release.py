"""The release of a device with nothing installed that the ramp of the offered release does not cover.

Rules:
- Only a device without an active release takes a fallback, and only while nothing but the ramp keeps it waiting.
- Only fallbacks of the channel's plan, which the release role signed; older than the offered release, the
  newest first. Online keys choose none.
- A fallback passes all rules of acceptance, and its own ramp. That counts the time that this device has seen the
  fallback itself; the time of the offered release still grows.
"""

from collections.abc import Callable
from dataclasses import replace

from bundle.acceptance import VerifiedRelease, accept, check_eligibility
from bundle.errors import Refused, Unavailable
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from bundle.trust.check_request import CheckRequest
from bundle.trust.sightings import Sighting
from bundle.trust.trust_state import TrustState


def find_covered_fallback(
    offered: VerifiedRelease,
    request: CheckRequest,
    state: TrustState,
    read_manifest: Callable[[Rollout], Manifest | None],
) -> VerifiedRelease | None:
    """Return the newest fallback that the device may take, or None if it waits for the offered release.

    Args:
        offered: the accepted release that the channel runs.
        request: parameters of the check.
        state: the trust state after the check.
        read_manifest: reads the verified manifest of the release that a rollout names, or returns None.
    """
    device, plan, family = request.new_device, offered.plan, request.family
    if not device or plan is None:
        return None
    if check_eligibility(offered, device, request.cohort, offered.checked_at_s).reason != "ramp":
        return None
    older = [named for named in plan.fallbacks if named.counter < offered.manifest.counter]
    for named in sorted(older, key=lambda release: -release.counter):
        rollout = replace(
            offered.rollout, version=named.version, counter=named.counter, manifest_digest=named.manifest_digest
        )
        seen = state.sightings.get(family, {}).get(named.manifest_digest, Sighting())
        try:
            manifest = read_manifest(rollout)
            if manifest is None:
                continue
            found = accept(
                manifest,
                rollout,
                offered.fleet,
                replace(offered.context, seen_s=seen.elapsed_s),
                family=family,
                channel=request.channel,
                floor=state.floor(family),
                known_releases=state.known_releases.get(family, {}),
                agent_version=request.agent_version,
                plan=plan,
            )
        except (Refused, Unavailable):
            continue
        if check_eligibility(found, device, request.cohort, found.checked_at_s).is_eligible:
            return found
    return None
