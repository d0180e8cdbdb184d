"""A publication is complete, signed by enough keys and checked like a device does, or it does not happen."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata

from bundle.acceptance import ReleaseCounter
from bundle.errors import RollbackRefused
from bundle.fleet import Cohort, Fleet
from bundle.manifest import Manifest
from keys.errors import ThresholdInvalid
from packager.errors import (
    BelowThreshold,
    FamilyUnknown,
    NothingStaged,
    PublishConflict,
    RepositoryDamaged,
    RepositoryExists,
    RepositoryMissing,
    StagingInvalid,
)
from packager.repository import layout, publishing
from packager.repository.creation import create_repository, create_repository_with_new_keys
from packager.repository.repository import Repository
from tests.support.metadata_publisher import (
    CHANNEL,
    FAMILY,
    PASSPHRASE,
    CheckClient,
    MetadataPublisher,
    copy_publisher,
    make_rollout,
)
from tests.support.packager_cli import run_packager


def test_a_release_needs_every_signature_of_its_roles(publisher: MetadataPublisher, device: CheckClient) -> None:
    manifest = publisher.make_manifest("1.1.0", 2)
    repository = publisher.repository
    repository.stage_manifest(manifest)
    repository.stage_rollout(make_rollout(manifest))
    online = publisher.signers_of("rollout-vision", "snapshot", "timestamp")
    report = repository.sign(online)
    assert not report.is_complete
    release = next(role for role in report.roles if role.role == "release-vision")
    assert (release.signed_key_ids, release.missing_signatures, len(release.unsigned_keys)) == ((), 2, 2)
    with pytest.raises(BelowThreshold) as refused:
        repository.publish()
    assert refused.value.reason == "below-threshold"
    assert "release-vision version 3 has 0 valid signatures, 2 more must sign" in refused.value.message
    first, second = publisher.signers_of("release-vision")
    assert not repository.sign([first, *online]).is_complete
    with pytest.raises(BelowThreshold):
        repository.publish()
    assert repository.sign([second, *online]).is_complete
    repository.publish()
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_signatures_of_every_role_can_come_one_at_a_time(publisher: MetadataPublisher, device: CheckClient) -> None:
    manifest = publisher.make_manifest("1.1.0", 2)
    repository = publisher.repository
    repository.stage_manifest(manifest)
    repository.stage_rollout(make_rollout(manifest))
    for signer in publisher.signers_of("release-vision", "rollout-vision", "snapshot", "timestamp"):
        report = Repository.open(repository.root).sign([signer])
    assert report.is_complete
    repository.publish()
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_a_changed_document_loses_its_signatures(publisher: MetadataPublisher) -> None:
    repository = publisher.repository
    repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    assert repository.sign(publisher.signers).is_complete
    repository.stage_manifest(publisher.make_manifest("1.2.0", 3))
    report = repository.sign([])
    assert not report.is_complete
    assert {role.role: len(role.signed_key_ids) for role in report.roles}["release-vision"] == 0


def test_what_was_staged_after_the_signature_is_not_forgotten(publisher: MetadataPublisher) -> None:
    repository = publisher.repository
    repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    assert repository.sign(publisher.signers).is_complete
    late = publisher.make_manifest("1.2.0", 3)
    repository.stage_manifest(late)
    with pytest.raises(BelowThreshold) as refused:
        repository.publish()
    assert "bundles/vision/1.2.0.json was staged after the last signature" in refused.value.message
    repository.withdraw(FAMILY, "1.2.0")
    repository.withdraw(FAMILY, "1.1.0")
    with pytest.raises(BelowThreshold):
        repository.publish()
    repository.stage_manifest(late)
    publisher.publish()
    assert [manifest.version for manifest in repository.releases(FAMILY)] == ["1.0.0", "1.2.0"]


def test_a_strangers_key_signs_nothing(publisher: MetadataPublisher, tmp_path: Path) -> None:
    other_publisher = MetadataPublisher(tmp_path / "stranger", [])
    create_repository_with_new_keys(other_publisher.folder / "repository", other_publisher.keys, PASSPHRASE, [FAMILY])
    from keys.signers import load_folder_signers

    other_signers = load_folder_signers(other_publisher.keys, PASSPHRASE)
    publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    report = publisher.repository.sign(other_signers)
    assert len(report.unused) == len(other_signers)
    assert not report.is_complete


def test_what_devices_would_refuse_is_not_published(publisher: MetadataPublisher, device: CheckClient) -> None:
    publisher.release("1.1.0", 2, min_counter=2)
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    before = (publisher.published / "metadata" / "timestamp.json").read_bytes()
    publisher.repository.stage_rollout(make_rollout(old))
    assert publisher.repository.sign(publisher.signers).is_complete
    with pytest.raises(RollbackRefused):
        publisher.repository.publish()
    assert (publisher.published / "metadata" / "timestamp.json").read_bytes() == before
    assert device.check(publisher.published).manifest.version == "1.1.0"


def test_the_second_of_two_publishers_is_told_who_won(publisher: MetadataPublisher) -> None:
    repository = publisher.repository
    repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    assert repository.sign(publisher.signers).is_complete
    repository.refresh(publisher.signers)
    with pytest.raises(PublishConflict) as lost:
        repository.publish()
    assert lost.value.reason == "publish-conflict"
    assert f"process {os.getpid()}" in lost.value.message
    assert repository.sign(publisher.signers).is_complete
    repository.publish()
    assert [manifest.version for manifest in repository.releases(FAMILY)] == ["1.0.0", "1.1.0"]


def test_a_held_lock_is_said_with_its_holder(publisher: MetadataPublisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "LOCK_TIMEOUT_S", 0.0)
    with layout.lock_repository(layout.RepositoryLayout(publisher.repository.root)):
        with pytest.raises(PublishConflict) as busy:
            publisher.repository.publish()
    assert f"process {os.getpid()}" in busy.value.message


def test_a_publication_cut_off_at_any_file_is_none_and_can_be_repeated(
    publisher: MetadataPublisher, device: CheckClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = publisher.make_manifest("1.1.0", 2)
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest))
    assert publisher.repository.sign(publisher.signers).is_complete
    real = layout.write_file
    cut = 0
    while True:
        left = cut

        def dying(path: Path, data: bytes) -> None:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= 1
            real(path, data)

        monkeypatch.setattr(publishing, "write_file", dying)
        tried = copy_publisher(publisher, publisher.folder.parent / f"cut-{cut}")
        watching = CheckClient(tried.folder / "watching", device.root)
        try:
            tried.repository.publish()
            break
        except OSError:
            assert watching.check(tried.published).manifest.version == "1.0.0"
        monkeypatch.setattr(publishing, "write_file", real)
        tried.repository.publish()
        assert watching.check(tried.published).manifest.version == "1.1.0"
        shutil.rmtree(tried.folder)
        cut += 1
    assert cut == 6


def test_nothing_staged_is_nothing_to_publish(publisher: MetadataPublisher) -> None:
    with pytest.raises(NothingStaged):
        publisher.repository.publish()
    with pytest.raises(NothingStaged):
        publisher.repository.sign(publisher.signers)
    publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    publisher.repository.discard()
    with pytest.raises(NothingStaged):
        publisher.repository.sign(publisher.signers)


def test_refresh_renews_the_timestamp_and_only_what_is_due(
    publisher: MetadataPublisher, device: CheckClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.check(publisher.published)
    publisher.repository.stage_manifest(publisher.make_manifest("1.1.0", 2))
    before = _contents(publisher.published)
    online = publisher.signers_of("rollout-vision", "snapshot", "timestamp")
    assert set(publisher.repository.refresh(online).roles) == {"timestamp"}
    after = _contents(publisher.published)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert changed == {"metadata/timestamp.json", "metadata/timestamp.awz"}
    assert device.check(publisher.published).manifest.version == "1.0.0"
    assert [m.version for m in publisher.repository.releases(FAMILY)] == ["1.0.0", "1.1.0"]
    assert set(publisher.repository.refresh(publisher.signers_of("timestamp")).roles) == {"timestamp"}
    with pytest.raises(BelowThreshold):
        publisher.repository.refresh(publisher.signers_of("snapshot"))
    monkeypatch.setattr(publishing, "RENEWAL_SHARE", 1.1)  # everything is due
    assert set(publisher.repository.refresh(online).roles) == {"rollout-vision", "snapshot", "timestamp"}
    assert device.check(publisher.published).manifest.version == "1.0.0"
    with pytest.raises(BelowThreshold):
        publisher.repository.refresh(publisher.signers_of("timestamp"))


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_staging_contradicts_nothing_that_is_out(publisher: MetadataPublisher) -> None:
    repository = publisher.repository
    manifest = repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    assert repository.next_counter(FAMILY) == 2
    wrong: tuple[Callable[[], object], ...] = (
        lambda: repository.stage_manifest(publisher.make_manifest("1.0.0", 2)),
        lambda: repository.stage_manifest(publisher.make_manifest("1.0.1", 1)),
        lambda: repository.stage_manifest(_manifest_with_missing_blob(publisher)),
        lambda: repository.stage_rollout(make_rollout(publisher.make_manifest("3.0.0", 3))),
        lambda: repository.stage_rollout(replace(make_rollout(manifest), counter=9)),
        lambda: repository.stage_rollout(make_rollout(manifest, "beta")),
        lambda: repository.withdraw(FAMILY, "3.0.0"),
        lambda: repository.put_shard("envelopes/../outside", b""),
        lambda: repository.put_shard("/etc/outside", b""),
        lambda: repository.stage_fleet(Fleet("0" * 64, 0, (Cohort("default", 1, bytes(1216)),))),
    )
    for attempt in wrong:
        with pytest.raises(StagingInvalid):
            attempt()
    with pytest.raises(FamilyUnknown):
        repository.stage_rollout(replace(make_rollout(manifest), family="speech"))
    with pytest.raises(NothingStaged):
        repository.publish()


def _manifest_with_missing_blob(publisher: MetadataPublisher) -> Manifest:
    manifest = publisher.make_manifest("1.1.0", 2)
    patch = replace(manifest.variants[0][1].patches[0], blob="0" * 64)
    return manifest.with_patches("fp32", (patch,))


def test_a_damaged_repository_is_not_built_upon(publisher: MetadataPublisher) -> None:
    snapshot = max((publisher.published / "metadata").glob("*.snapshot.json"), key=lambda path: path.name)
    snapshot.write_bytes(snapshot.read_bytes().replace(b"snapshot", b"snapshit", 1))
    with pytest.raises(RepositoryDamaged):
        publisher.repository.status()


def test_there_is_one_repository_a_folder(publisher: MetadataPublisher, tmp_path: Path) -> None:
    with pytest.raises(RepositoryExists):
        create_repository_with_new_keys(publisher.repository.root, tmp_path / "k", PASSPHRASE, [FAMILY])
    assert not (tmp_path / "k").exists()
    with pytest.raises(RepositoryMissing):
        Repository.open(tmp_path / "nowhere")
    with pytest.raises(FamilyUnknown):
        create_repository_with_new_keys(tmp_path / "r", tmp_path / "k", PASSPHRASE, ["Vision/.."])
    assert not (tmp_path / "k").exists()


def test_a_repository_with_weak_roles_is_not_made(publisher: MetadataPublisher, tmp_path: Path) -> None:
    signers = {
        role: publisher.signers_of(role)
        for role in ("root", "targets", "snapshot", "fleet", "release-vision", "rollout-vision")
    }
    signers["timestamp"] = publisher.signers_of("timestamp")[:1]
    with pytest.raises(ThresholdInvalid):
        create_repository(tmp_path / "weak", signers=signers, families=[FAMILY])
    with pytest.raises(FamilyUnknown):
        create_repository(tmp_path / "weak", signers=signers, families=["speech"])
    assert not (tmp_path / "weak" / "published").exists()


def test_a_classical_repository_says_that_it_is_one(tmp_path: Path) -> None:
    repository = create_repository_with_new_keys(tmp_path / "r", tmp_path / "k", PASSPHRASE, [FAMILY], classical=True)
    status = repository.status()
    assert status.is_classical
    assert status.is_sound
    assert all(role.post_quantum == 0 for role in status.roles)


def test_status_counts_days_and_doctor_finds_no_fault(publisher: MetadataPublisher) -> None:
    status = publisher.repository.status()
    assert status.is_sound
    assert not status.is_due
    thresholds = {role.name: (role.threshold, role.classical, role.post_quantum) for role in status.roles}
    assert thresholds["root"] == thresholds["targets"] == (3, 2, 2)
    assert {value for name, value in thresholds.items() if name not in ("root", "targets")} == {(2, 1, 1)}
    days = {role.name: round(role.days_left) for role in status.roles}
    assert days == {
        "root": 365,
        "targets": 182,
        "snapshot": 7,
        "timestamp": 1,
        "fleet": 91,
        "release-vision": 91,
        "rollout-vision": 7,
    }


def test_doctor_finds_a_key_under_two_ids(publisher: MetadataPublisher) -> None:
    metadata = publisher.published / "metadata"
    root: Metadata = Metadata.from_bytes((metadata / "1.root.json").read_bytes())  # type: ignore[type-arg]  # of Root
    role = root.signed.roles["timestamp"]
    classical = next(root.signed.keys[keyid] for keyid in role.keyids if root.signed.keys[keyid].keytype == "ed25519")
    twin = type(classical)("e" * 64, classical.keytype, classical.scheme, dict(classical.keyval))
    role.keyids = [classical.keyid, twin.keyid]
    root.signed.keys[twin.keyid] = twin
    (metadata / "1.root.json").write_bytes(root.to_bytes())
    status = publisher.repository.status()
    assert not status.is_sound
    problems = next(role.problems for role in status.roles if role.name == "timestamp")
    assert any("under 2 key ids" in problem for problem in problems)


def test_a_publication_succeeds_without_its_copies(
    publisher: MetadataPublisher, caplog: pytest.LogCaptureFixture
) -> None:
    """Something is in the way of the archives and of the compressed timestamp."""
    metadata = publisher.published / "metadata"
    shutil.rmtree(metadata / "archives")
    (metadata / "archives").write_text("a file")
    (metadata / "timestamp.awz").unlink()
    (metadata / "timestamp.awz").mkdir()
    publisher.release("1.1.0", 2)
    rollout = publisher.repository.published_rollout(FAMILY, CHANNEL)
    assert rollout is not None
    assert rollout.version == "1.1.0"
    assert "timestamp.awz is not written" in caplog.text


def test_garbage_is_what_fell_out_of_use_before_the_grace_period(publisher: MetadataPublisher) -> None:
    """All files are years old; what was published a minute ago is in use until its successor is a day old."""
    repository = publisher.repository
    manifest = repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    blob = manifest.variants[0][1].patches[0].blob
    rollout = next((publisher.published / "targets" / "rollouts" / FAMILY).iterdir()).relative_to(publisher.published)
    publisher.release("1.1.0", 2)
    repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    for path in publisher.published.rglob("*"):
        os.utime(path, (0, 0))
    kept = repository.collect_garbage(dry_run=False)
    assert kept.removed == ()
    times = layout.publication_times(repository.layout)
    newest = max(times)
    reasons = {one.path: one.reason for one in repository.collect_garbage(dry_run=True).decisions}
    assert "which was replaced 0.0 hours ago" in reasons[f"blobs/{blob[:2]}/{blob}"]
    assert "which was replaced" in reasons[str(rollout)]
    assert reasons["metadata/1.root.json"] == "roots stay forever"
    assert reasons[f"metadata/{newest}.snapshot.json"] == "of the current publication"
    # a day later only the current publication is in use
    record = {str(version): at_s - 86_401 for version, at_s in times.items()}
    repository.layout.publications.write_text(json.dumps(record))
    removed = repository.collect_garbage(dry_run=False).removed
    assert {f"blobs/{blob[:2]}/{blob}", str(rollout)} <= set(removed)
    assert publisher.repository.status().is_sound


def test_a_renewal_of_the_timestamp_does_not_extend_the_grace_period(publisher: MetadataPublisher) -> None:
    repository = publisher.repository
    times = {str(version): at_s - 86_401 for version, at_s in layout.publication_times(repository.layout).items()}
    repository.layout.publications.write_text(json.dumps(times))
    assert set(repository.refresh(publisher.signers).roles) == {"timestamp"}
    assert json.loads(repository.layout.publications.read_text()) == times


def test_without_a_record_the_age_of_the_successor_counts(publisher: MetadataPublisher) -> None:
    """A copy of a repository, from a backup or another machine, may lack the record of publications."""
    publisher.release("1.1.0", 2)
    publisher.repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    publisher.repository.layout.publications.unlink()
    for path in publisher.published.rglob("*"):
        os.utime(path, (0, 0))
    newest = max(publisher.published.glob("metadata/*.snapshot.json"), key=lambda path: int(path.name.split(".")[0]))
    os.utime(newest)
    assert not [name for name in publisher.repository.collect_garbage(dry_run=True).removed if "blobs/" in name]
    os.utime(newest, (0, 0))
    assert [name for name in publisher.repository.collect_garbage(dry_run=True).removed if "blobs/" in name]


@pytest.mark.parametrize("mask", [0o077, 0o027])
def test_what_is_published_can_be_read_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        repository = create_repository_with_new_keys(
            tmp_path / "repository", tmp_path / "keys", None, [FAMILY], insecure_plaintext=True
        )
        blob = tmp_path / "blob"
        blob.write_bytes(b"data")
        repository.put_blob(blob)
        repository.put_shard(f"envelopes/content/{FAMILY}/1", b"sealed")
    finally:
        os.umask(before)
    assert layout.unreadable_paths(repository.layout) == []
    assert repository.root.stat().st_mode & 0o011 == 0o011
    (repository.published / "blobs").chmod(0o700)
    repository.put_blob(blob)
    assert layout.unreadable_paths(repository.layout) == []


def test_verify_names_what_a_web_server_cannot_read(publisher: MetadataPublisher) -> None:
    metadata = publisher.published / "metadata"
    (metadata / "timestamp.json").chmod(0o600)
    result = run_packager("repo", "verify", "--repo", publisher.repository.root, "--json")
    assert result.code == 3
    assert result.json["unreadable"] == ["metadata/timestamp.json"]
    text = run_packager("repo", "verify", "--repo", publisher.repository.root).stdout
    assert "metadata/timestamp.json: other users cannot read it" in text


def test_garbage_is_what_no_listed_release_names(publisher: MetadataPublisher, device: CheckClient) -> None:
    publisher.release("1.1.0", 2)
    publisher.repository.put_shard(f"envelopes/content/{FAMILY}/1", b"old")
    publisher.repository.put_shard(f"envelopes/content/{FAMILY}/2", b"now")
    publisher.repository.put_shard("envelopes/cohorts/default/0/1-0", b"past")
    publisher.repository.put_shard("envelopes/cohorts/default/1/1-0", b"now")
    publisher.repository.put_shard("envelopes/cohorts/default/1/2-1", b"staged")
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    assert publisher.repository.collect_garbage(dry_run=False).removed == ()
    publisher.repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    blob = old.variants[0][1].patches[0].blob
    planned = publisher.repository.collect_garbage(dry_run=True, grace_s=0)
    assert f"blobs/{blob[:2]}/{blob}" in planned.removed
    shards = [name for name in planned.removed if name.startswith("envelopes/")]
    assert shards == ["envelopes/cohorts/default/0/1-0", f"envelopes/content/{FAMILY}/1"]
    assert not any(name.endswith("root.json") for name in planned.removed)
    done = publisher.repository.collect_garbage(dry_run=False, grace_s=0)
    assert done.removed == planned.removed
    assert device.check(publisher.published).counter == ReleaseCounter(1, 2)
    assert publisher.repository.status().is_sound
