"""Step sign: put the release into the repository and sign it.

Order of work:
1. Parse the manifest with the device's strict reader, before anything is written.
2. Store the build record, content keys and plain bundles in the workspace: no blob is published without its key.
3. Put blobs and envelopes, then stage the manifest and rollouts.
4. Sign with the keys on this machine.
"""

from bundle.envelope import compute_commitment
from bundle.envelope_shard import encode_shard
from bundle.files import bundle_digest
from bundle.fleet import Fleet
from bundle.manifest import Manifest, parse_manifest
from bundle.repository_paths import content_shard_path
from bundle.rollout import Rollout
from bundle.variant import ModelEntry, Variant
from keys.errors import CohortUnknown
from packager.models.model_package import golden_path_of
from packager.release.draft import AssembledVariant, Draft, EncryptedVariant, ModelChecks
from packager.release.release_plan import RolloutPlan
from packager.release.release_record import build_record
from packager.release.steps.encrypt import blob_path, seal_to_cohorts
from packager.repository.workspace import StoredVariant


def run(draft: Draft) -> None:
    """Put the release into the repository, sign it, and set `manifest`, `envelopes` and `sign_report`.

    Raises:
        CohortUnknown: the rollout names a cohort that the fleet does not have.
        TooLarge: the manifest is larger than its format allows.
        StagingInvalid: the release contradicts the published repository.
    """
    manifest = make_manifest(draft)
    parse_manifest(manifest.as_bytes())
    fleet = draft.repository.fleet()
    check_cohorts(draft.plan.rollout, tuple(cohort.name for cohort in fleet.cohorts))
    draft.workspace.store_build_record(manifest.family, manifest.counter, build_record(draft).as_bytes())
    for variant in draft.encrypted.values():
        _store_variant(draft, variant)
        for patch in variant.assembled.patches:
            draft.repository.put_blob(blob_path(patch))
    _put_content_shard(draft, manifest, fleet)
    draft.repository.stage_manifest(manifest)
    for rollout in rollouts_of(draft.plan.rollout, manifest):
        draft.repository.stage_rollout(rollout)
    draft.manifest = manifest
    draft.sign_report = draft.repository.sign(draft.signers)


def make_manifest(draft: Draft) -> Manifest:
    """Return the manifest of the encrypted variants."""
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
        ramp=plan.ramp,
        variants=tuple(
            (name, _manifest_variant(v, plan.at_rest, plan.model_name)) for name, v in sorted(draft.encrypted.items())
        ),
    )


def rollouts_of(plan: RolloutPlan | None, manifest: Manifest) -> tuple[Rollout, ...]:
    """Return one rollout document for each channel of the release file.

    Args:
        plan: the table `[rollout]`, or None.
        manifest: the release that the channels run.
    """
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
            salt=f"{manifest.family}-{manifest.counter}",  # so that each release starts with other devices
            cohorts=plan.cohorts,
            note=plan.note,
        )
        for channel in plan.channels
    )


def check_cohorts(plan: RolloutPlan | None, known: tuple[str, ...]) -> None:
    """Check that the fleet has the cohorts of the rollout.

    Args:
        plan: the table `[rollout]`, or None.
        known: names of the fleet's cohorts.

    Raises:
        CohortUnknown: a cohort is not in the fleet.
    """
    for cohort in plan.cohorts if plan is not None else ():
        if cohort not in known:
            raise CohortUnknown(f"rollout.cohorts: found {cohort!r}, the fleet has {', '.join(known) or 'none'}")


def _put_content_shard(draft: Draft, manifest: Manifest, fleet: Fleet) -> None:
    (content_key,) = {variant.content_key for variant in draft.encrypted.values()}
    envelopes = seal_to_cohorts(
        content_key,
        fleet,
        repository=draft.repository.repository_id,
        family=manifest.family,
        counter=manifest.counter,
    )
    if envelopes:
        draft.repository.put_shard(content_shard_path(manifest.family, manifest.counter), encode_shard(envelopes))
    draft.envelopes += len(envelopes)


def _manifest_variant(variant: EncryptedVariant, at_rest: str, model_name: str) -> Variant:
    assembled = variant.assembled
    return Variant(
        runtime=assembled.runtime,
        requires=assembled.requires,
        at_rest=at_rest,
        files=assembled.bundle.files,
        models=model_entries(assembled, model_name),
        patches=variant.entries,
        key_commitment=compute_commitment(variant.content_key),
        health=assembled.checks.health,
        quantization=assembled.quantized.quantization,
        measured=assembled.measured,
        provenance=tuple(sorted(assembled.provenance.items())),
    )


def model_entries(assembled: AssembledVariant, model_name: str) -> tuple[ModelEntry, ...]:
    """Return the models of a variant that the agent runs.

    Args:
        assembled: the variant.
        model_name: name of the first model.
    """
    checks, files = assembled.checks, assembled.bundle.files
    if checks.contract is None:
        return ()
    if not checks.further:
        by_role = {file.role: file.path for file in files}
        return (ModelEntry(model_name, by_role["model"], by_role.get("golden"), checks.contract),)
    folders = {file.path.split("/", 1)[0]: file.path for file in files if file.role == "model"}
    golden = {file.path for file in files if file.role == "golden"}
    first = ModelChecks(model_name, checks.contract, checks.golden)
    return tuple(
        ModelEntry(
            found.name,
            folders[found.name],
            path if (path := golden_path_of(found.name)) in golden else None,
            found.contract,
        )
        for found in (first, *checks.further)
    )


def _store_variant(draft: Draft, variant: EncryptedVariant) -> None:
    bundle = variant.assembled.bundle
    digest = bundle_digest(bundle.files)
    record = StoredVariant(
        draft.plan.family, draft.counter, draft.plan.version, variant.name, digest, variant.content_key
    )
    draft.workspace.store_variant(bundle, record)
