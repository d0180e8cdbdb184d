"""Step 7: the release enters the repository: keys and bundles are kept, blobs and envelopes put, metadata signed.

Rules, in order:
1. The manifest that will be signed is read back by the device's own strict reader before anything is written.
2. Keys, plain bundles and the record of the build go to the workspace first: no blob is ever out whose key is lost.
3. Then blobs and envelopes, then manifest and rollouts, then signatures by the keys that are here.
"""

from bundle.envelope import compute_commitment
from bundle.files import bundle_digest
from bundle.frames import Secret
from bundle.manifest import Manifest, Variant, parse_manifest
from bundle.rollout import Rollout
from keys.errors import CohortUnknown
from packager.release.draft import Draft, VariantDraft
from packager.release.release_file import RolloutPlan
from packager.release.release_record import build_record
from packager.release.steps.encrypt import blob_path, seal_to_cohorts
from packager.repository.workspace import StoredVariant


def run(draft: Draft) -> None:
    """Set `manifest`, `envelopes` and `signed`. Raises CohortUnknown, TooLargeRefused, errors of the repository."""
    manifest = make_manifest(
        draft, commitments={v.name: compute_commitment(_content_key(v)) for v in draft.included_variants}
    )
    parse_manifest(manifest.as_bytes())
    fleet = draft.repository.fleet()
    check_cohorts(draft.plan.rollout, tuple(cohort.name for cohort in fleet.cohorts))
    draft.workspace.store_build_record(manifest.family, manifest.counter, build_record(draft).as_bytes())
    for variant in draft.included_variants:
        _store_variant(draft, variant)
        for patch in variant.patches:
            draft.repository.put_blob(blob_path(patch))
        envelopes = seal_to_cohorts(
            _content_key(variant),
            fleet,
            repository=draft.repository.repository_id,
            family=manifest.family,
            counter=manifest.counter,
            variant=variant.name,
        )
        for envelope in envelopes:
            draft.repository.put_envelope(envelope.path, envelope.data)
        draft.envelopes += len(envelopes)
    draft.repository.stage_manifest(manifest)
    for rollout in rollouts_of(draft.plan.rollout, manifest):
        draft.repository.stage_rollout(rollout)
    draft.manifest = manifest
    draft.sign_report = draft.repository.sign(draft.signers)


def make_manifest(draft: Draft, commitments: dict[str, str]) -> Manifest:
    """The manifest of the kept variants."""
    plan = draft.plan
    earlier = [manifest.min_counter for manifest in draft.repository.releases(plan.family)]
    return Manifest(
        family=plan.family,
        version=plan.version,
        counter=draft.counter,
        min_counter=max(earlier, default=0) if plan.min_counter is None else plan.min_counter,
        channels=plan.channels,
        min_agent=plan.min_agent,
        created=draft.created,
        variants=tuple(
            (v.name, _manifest_variant(v, commitments[v.name]))
            for v in sorted(draft.included_variants, key=lambda v: v.name)
        ),
    )


def rollouts_of(plan: RolloutPlan | None, manifest: Manifest) -> tuple[Rollout, ...]:
    """What the release file says to devices, for each of its channels."""
    if plan is None:
        return ()
    return tuple(
        Rollout(
            family=manifest.family,
            channel=channel,
            version=manifest.version,
            counter=manifest.counter,
            manifest_digest=manifest.digest_without_patches(),
            percent_bp=plan.percent_bp,
            salt=f"{manifest.family}-{manifest.counter}",  # each release draws its first devices anew
            cohorts=plan.cohorts,
            note=plan.note,
        )
        for channel in plan.channels
    )


def check_cohorts(plan: RolloutPlan | None, known: tuple[str, ...]) -> None:
    """Raises CohortUnknown."""
    for cohort in plan.cohorts if plan is not None else ():
        if cohort not in known:
            raise CohortUnknown(f"rollout.cohorts: found {cohort!r}, the fleet has {', '.join(known) or 'none'}")


def _manifest_variant(variant: VariantDraft, commitment: str) -> Variant:
    assert variant.bundle is not None
    assert variant.requires is not None
    assert variant.contract is not None
    assert variant.health is not None
    return Variant(
        requires=variant.requires,
        files=variant.bundle.files,
        patches=variant.entries,
        key_commitment=commitment,
        contract=variant.contract,
        health=variant.health,
        quantization=variant.quantization,
        provenance=tuple(sorted(variant.provenance.items())),
    )


def _store_variant(draft: Draft, variant: VariantDraft) -> None:
    assert variant.bundle is not None
    digest = bundle_digest(variant.bundle.files)
    record = StoredVariant(
        draft.plan.family, draft.counter, draft.plan.version, variant.name, digest, _content_key(variant)
    )
    draft.workspace.store_variant(variant.bundle, record)


def _content_key(variant: VariantDraft) -> Secret:
    assert variant.content_key is not None
    return variant.content_key
