"""An attacker with a mirror and some keys of the repository, against the whole agent.

tests/trust/test_compromised_keys.py tries every subset of roles against the verifier. Here, some subsets sign a
complete release that was never made: manifest, rollout, encrypted blobs, envelopes. And files of a good release are
exchanged for those of another release or device.
"""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bundle.envelope_shard import decode_shard, encode_shard
from bundle.manifest import Manifest
from bundle.rollout import Rollout
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.storage.bundle_store import BundleStore
from tests.support import tiny_models
from tests.support.attacker import Attacker
from tests.support.faulty_http_server import serve_folder
from tests.support.metadata_publisher import MetadataPublisher
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher
from torture.in_process import InProcessWorkerPool

ONLINE = ("snapshot", "timestamp")
RELEASE, ROLLOUT = f"release-{FAMILY}", f"rollout-{FAMILY}"
# stolen roles → whether the agent installs a release that was never made
SUBSETS: dict[tuple[str, ...], bool] = {
    (): False,
    ONLINE: False,
    (*ONLINE, ROLLOUT): False,
    (*ONLINE, RELEASE): False,
    (RELEASE, ROLLOUT, "snapshot"): False,
    (RELEASE, ROLLOUT, "timestamp"): False,
    (*ONLINE, RELEASE, ROLLOUT): True,
}
REFUSALS = (Outcome.REFUSED, Outcome.UNAVAILABLE)


@pytest.fixture(scope="module")
def evil_publisher(first_publisher: Publisher, tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    """Return a copy of the publisher with a release that the real one never made."""
    evil = first_publisher.copy(tmp_path_factory.mktemp("evil") / "site")
    evil.release("6.6.6", model=tiny_models.mlp(66))
    return evil


def make_attacker(publisher: Publisher, stolen: tuple[str, ...]) -> Attacker:
    """Return an attacker with the published files and the keys of the stolen roles."""
    link = publisher.folder / "repository"
    if not link.exists():
        link.symlink_to("repo")
    return Attacker.from_publisher(MetadataPublisher(publisher.folder, list(publisher.signers)), *stolen)


def offer_to(attacker: Attacker, manifest: Manifest) -> None:
    attacker.release(manifest)
    attacker.roll_out(Rollout(FAMILY, "stable", manifest.version, manifest.counter, manifest.digest_without_patches()))
    attacker.publish()
    # documents alone, which devices read as well, instead of archives of honest ones
    for path in attacker.mirror.rglob("*.awz"):
        path.unlink()


def update_from(device: DeviceUnderTest, url: str) -> UpdateResult:
    """Update from a URL, with the handlers of the workers in this process and a real probe."""
    device.config = replace(device.config, repository_url=url)
    store = BundleStore(device.directory.root)
    return device.update(open_workers=lambda: InProcessWorkerPool(device.config, device.directory, store))


def assert_only_the_old_release(device: DeviceUnderTest, publisher: Publisher) -> None:
    journal = device.journal()
    assert journal.pointers.active == publisher.digest("1.0.0")
    journal.close()
    assert BundleStore(device.directory.root).digests() == {publisher.digest("1.0.0")}


@pytest.mark.parametrize("stolen", SUBSETS, ids=["+".join(roles) or "none" for roles in SUBSETS])
def test_a_release_that_was_never_made(
    stolen: tuple[str, ...], installed: DeviceUnderTest, publisher: Publisher, evil_publisher: Publisher
) -> None:
    attacker = make_attacker(publisher, stolen)
    for folder in ("blobs", "envelopes"):
        shutil.copytree(evil_publisher.published / folder, attacker.mirror / folder, dirs_exist_ok=True)
    offer_to(attacker, evil_publisher.manifest("6.6.6"))
    with serve_folder(attacker.mirror) as site:
        result = update_from(installed, site.url)
    if SUBSETS[stolen]:
        assert result.outcome is Outcome.STAGED, result
        return
    assert result.outcome in REFUSALS, result
    assert_only_the_old_release(installed, publisher)


def test_a_signed_manifest_that_names_the_blob_of_another_release(
    installed: DeviceUnderTest, publisher: Publisher
) -> None:
    """Frames are bound to family, counter and variant, so keys of the repository do not make a blob fit elsewhere."""
    manifest = publisher.manifest("1.1.0")
    other = publisher.manifest("1.0.0").variant("fp32")
    variant = manifest.variant("fp32")
    assert variant is not None
    assert other is not None
    moved = replace(other.patches[0], codec=variant.patches[0].codec)
    attacker = make_attacker(publisher, (*ONLINE, RELEASE, ROLLOUT))
    offer_to(attacker, replace(manifest.with_patches("fp32", (moved,)), version="6.6.7", counter=manifest.counter + 1))
    content = attacker.mirror / "envelopes" / "content" / FAMILY
    shutil.copyfile(content / str(manifest.counter), content / str(manifest.counter + 1))
    with serve_folder(attacker.mirror) as site:
        result = update_from(installed, site.url)
    assert result.outcome in REFUSALS, result
    assert_only_the_old_release(installed, publisher)


def delete_archives(publisher: Publisher) -> None:
    """Delete the copies of the documents, so that a device reads the shards themselves."""
    shutil.rmtree(publisher.published / "metadata" / "archives")


def exchange_content_envelopes(publisher: Publisher, _device: DeviceUnderTest, _folder: Path) -> None:
    """Serve the content key of 1.0.0 as that of 1.1.0."""
    content = publisher.published / "envelopes" / "content" / FAMILY
    old, new = (content / str(publisher.manifest(version).counter) for version in ("1.0.0", "1.1.0"))
    shutil.copyfile(old, new)
    delete_archives(publisher)


def exchange_kinds(publisher: Publisher, _device: DeviceUnderTest, _folder: Path) -> None:
    """Serve a cohort envelope where a content envelope belongs."""
    envelopes = publisher.published / "envelopes"
    (shard,) = (path for path in (envelopes / "cohorts").rglob("*") if path.is_file())
    (sealed, *_) = decode_shard(shard.read_bytes()).values()
    for path in (envelopes / "content").rglob("*"):
        if path.is_file():
            path.write_bytes(encode_shard(dict.fromkeys(decode_shard(path.read_bytes()), sealed)))
    delete_archives(publisher)


def exchange_blobs(publisher: Publisher, _device: DeviceUnderTest, _folder: Path) -> None:
    """Serve the blob of 1.0.0 under the names of 1.1.0's blobs."""
    old = (publisher.published / publisher.blobs("1.0.0")[0]).read_bytes()
    for name in publisher.blobs("1.1.0"):
        (publisher.published / name).write_bytes(old)


@pytest.mark.parametrize("exchange", [exchange_content_envelopes, exchange_kinds, exchange_blobs])
def test_files_of_a_release_at_the_place_of_others(
    exchange: Callable[[Publisher, DeviceUnderTest, Path], None],
    installed: DeviceUnderTest,
    publisher: Publisher,
    tmp_path: Path,
) -> None:
    publisher.offer("1.1.0")
    whole = publisher.copy(tmp_path / "whole")
    exchange(publisher, installed, tmp_path)
    with serve_folder(publisher.published) as site:
        result = update_from(installed, site.url)
    assert result.outcome in REFUSALS, result
    assert_only_the_old_release(installed, publisher)
    # an honest mirror of the same release still updates the device: nothing was quarantined
    shutil.copytree(whole.published / "envelopes", publisher.published / "envelopes", dirs_exist_ok=True)
    shutil.copytree(whole.published / "blobs", publisher.published / "blobs", dirs_exist_ok=True)
    with serve_folder(publisher.published) as site:
        assert update_from(installed, site.url).outcome is Outcome.STAGED


def test_a_cohort_key_that_is_sealed_to_another_device(
    device: DeviceUnderTest, publisher: Publisher, tmp_path: Path
) -> None:
    other = DeviceUnderTest.create(tmp_path / "other", "file:///nowhere", publisher.root)
    publisher.enroll(other.directory)
    whole = publisher.copy(tmp_path / "whole")
    (path,) = (path for path in (publisher.published / "envelopes" / "cohorts").rglob("*") if path.is_file())
    names, sealed = zip(*decode_shard(path.read_bytes()).items(), strict=True)
    assert len(names) >= 2
    path.write_bytes(encode_shard(dict(zip(names, [*sealed[1:], sealed[0]], strict=True))))
    with serve_folder(publisher.published) as site:
        result = update_from(device, site.url)
    assert result.outcome in REFUSALS, result
    assert BundleStore(device.directory.root).digests() == set()
    with serve_folder(whole.published) as site:
        assert update_from(device, site.url).outcome is Outcome.STAGED
