"""A device accepts a release that two roles agree on, and refuses all others with the cause."""

import time
from dataclasses import replace

import pytest

from bundle.acceptance import ReleaseCounter, VerifiedRelease
from bundle.errors import (
    AgentTooOld,
    Bug,
    CheckInProgress,
    CounterReused,
    DigestMismatch,
    DownloadFailed,
    Malformed,
    MetadataExpired,
    NoRollout,
    NotFound,
    ReleaseMismatch,
    ReleaseWithdrawn,
    RollbackRefused,
    TooLarge,
    UntrustedMetadata,
    WrongChannel,
)
from bundle.trust import role_names
from tests.support.metadata_publisher import (
    CHANNEL,
    FAMILY,
    NOW_S,
    CheckClient,
    MetadataPublisher,
    build_publisher,
    copy_publisher,
    create_client,
    fetch_file,
    fetch_http,
    make_rollout,
    replace_file,
    start_server,
)

DAY_S = 86_400


def test_the_first_check_accepts_the_release_and_remembers_it(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    release = device.check(publisher.published)
    assert (release.manifest.version, release.counter) == ("1.0.0", ReleaseCounter(1, 1))
    assert release.repository_id == publisher.repository.repository_id
    assert NOW_S < release.expires_at_s <= int(time.time()) + DAY_S
    memory = device.trust_states.load()
    assert memory is not None
    assert memory.roles["timestamp"].version == release.context.timestamp_version
    assert set(memory.roles) == {
        "root",
        "timestamp",
        "snapshot",
        "targets",
        "fleet",
        "release-vision",
        "rollout-vision",
    }
    assert memory.known_releases[FAMILY] == {ReleaseCounter(1, 1): release.manifest.digest_without_patches()}


def test_a_check_over_http_gives_the_same(publisher: MetadataPublisher, device: CheckClient) -> None:
    url, stop = start_server(publisher.published)
    try:
        over_http = device.check(url, fetch_http)
    finally:
        stop()
    over_files = create_client(publisher, "other").check(publisher.published)
    assert over_http.manifest == over_files.manifest
    assert over_http.context.timestamp_version == over_files.context.timestamp_version


def test_a_verified_release_crosses_the_process_boundary_whole(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    release = device.check(publisher.published)
    assert VerifiedRelease.from_verifier(release.as_json()) == release


def test_nobody_but_accept_makes_a_verified_release(publisher: MetadataPublisher, device: CheckClient) -> None:
    release = device.check(publisher.published)
    with pytest.raises(Bug):
        VerifiedRelease(
            release.manifest, release.rollout, release.fleet, release.context, None, release.floor, object()
        )
    with pytest.raises((Bug, TypeError, ValueError)):
        replace(release, floor=ReleaseCounter(0, 0), _proof=None)


def test_replayed_metadata_is_a_rollback(publisher: MetadataPublisher, device: CheckClient) -> None:
    old = publisher.copy_published("mirror-of-then")
    publisher.release("1.1.0", 2)
    assert device.check(publisher.published).manifest.version == "1.1.0"
    before = device.trust_states.load()
    with pytest.raises(RollbackRefused) as refused:
        device.check(old)
    assert refused.value.reason == "rollback-refused"
    assert device.trust_states.load() == before


def test_a_release_below_the_floor_is_refused(publisher: MetadataPublisher, device: CheckClient) -> None:
    publisher.release("1.1.0", 2, min_counter=2)
    assert device.check(publisher.published).floor == ReleaseCounter(1, 2)
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    publisher.repository.stage_rollout(make_rollout(old))
    publisher.publish(check_clients=False)
    with pytest.raises(RollbackRefused) as refused:
        device.check(publisher.published)
    assert "counter 1 (epoch 1), the floor is 2 (epoch 1)" in refused.value.message
    memory = device.trust_states.load()
    assert memory is not None
    assert memory.floor(FAMILY) == ReleaseCounter(1, 2)


def test_an_older_release_above_the_floor_may_be_chosen_again(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    publisher.release("1.1.0", 2)
    device.check(publisher.published)
    old = publisher.repository.manifest(FAMILY, "1.0.0")
    assert old is not None
    publisher.repository.stage_rollout(make_rollout(old))
    publisher.publish()
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_a_rollout_that_names_a_release_that_is_not_listed_is_withdrawn(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    publisher.repository.withdraw(FAMILY, "1.0.0")
    report = publisher.publish()
    assert report.client_checks[0].version is None
    with pytest.raises(ReleaseWithdrawn) as refused:
        device.check(publisher.published)
    assert refused.value.reason == "release-withdrawn"


def test_withdrawal_is_remembered_against_a_replay(publisher: MetadataPublisher, device: CheckClient) -> None:
    old = publisher.copy_published("mirror-of-then")
    publisher.repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    with pytest.raises(ReleaseWithdrawn):
        device.check(publisher.published)
    with pytest.raises(RollbackRefused):
        device.check(old)


@pytest.mark.parametrize(
    ("field", "value"),
    [("counter", 7), ("manifest_digest", "0" * 64), ("family", "other"), ("channel", "beta")],
)
def test_a_rollout_that_disagrees_with_the_manifest_is_refused(
    publisher: MetadataPublisher, device: CheckClient, field: str, value: object
) -> None:
    manifest = publisher.repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    forged = replace(make_rollout(manifest), **{field: value})  # type: ignore[arg-type]  # the field's own type, by the table
    publisher.forge_target(role_names.rollout_target(FAMILY, CHANNEL), forged.as_bytes())
    publisher.publish(check_clients=False)
    with pytest.raises(ReleaseMismatch) as refused:
        device.check(publisher.published)
    assert refused.value.reason == "release-mismatch"


def test_a_release_for_another_channel_is_refused(publisher: MetadataPublisher, device: CheckClient) -> None:
    manifest = publisher.make_manifest("1.1.0", 2, channels=("beta",))
    publisher.repository.stage_manifest(manifest)
    publisher.repository.stage_rollout(make_rollout(manifest), forged=True)
    publisher.publish(check_clients=False)
    with pytest.raises(WrongChannel) as refused:
        device.check(publisher.published)
    assert refused.value.reason == "wrong-channel"
    assert "'beta'" in refused.value.message


def test_a_known_counter_with_another_content_is_refused(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    publisher.repository.withdraw(FAMILY, "1.0.0")
    publisher.publish()
    again = publisher.make_manifest("1.0.1", 1)
    publisher.repository.stage_manifest(again)
    publisher.repository.stage_rollout(make_rollout(again))
    publisher.publish(check_clients=False)
    with pytest.raises(CounterReused) as refused:
        device.check(publisher.published)
    assert refused.value.reason == "counter-reused"


def test_more_patches_leave_the_release_the_same(publisher: MetadataPublisher, device: CheckClient) -> None:
    device.check(publisher.published)
    manifest = publisher.repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    patch = manifest.variants[0][1].patches[0]
    more = manifest.with_patches("fp32", (patch, replace(patch, codec="bsdiff4")))
    publisher.repository.stage_manifest(more)
    publisher.publish()
    assert len(device.check(publisher.published).manifest.variants[0][1].patches) == 2


def test_an_agent_that_is_too_old_says_so(publisher: MetadataPublisher, device: CheckClient) -> None:
    with pytest.raises(AgentTooOld) as refused:
        replace(device, agent_version="0.0.9").check(publisher.published)
    assert "0.1.0" in refused.value.message
    assert "0.0.9" in refused.value.message


def test_an_unknown_channel_or_family_has_no_rollout(publisher: MetadataPublisher, device: CheckClient) -> None:
    with pytest.raises(NoRollout):
        replace(device, channel="beta").check(publisher.published)
    with pytest.raises(NoRollout):
        replace(device, family="speech").check(publisher.published)


def test_expired_metadata_is_not_believed_and_not_fatal(publisher: MetadataPublisher, device: CheckClient) -> None:
    with pytest.raises(MetadataExpired) as late:
        device.with_time(NOW_S + 2 * DAY_S).check(publisher.published)
    assert late.value.reason == "metadata-expired"
    assert device.check(publisher.published).manifest.version == "1.0.0"


def test_metadata_of_another_repository_is_named_as_such(
    publisher: MetadataPublisher, device: CheckClient, pristine_publisher: MetadataPublisher
) -> None:
    device.check(publisher.published)
    other = build_publisher(publisher.folder / "other")
    other.release("9.9.9", 9)
    before = device.trust_states.load()
    with pytest.raises(UntrustedMetadata) as refused:
        device.check(other.published)
    assert refused.value.reason == "another-repository"
    assert device.trust_states.load() == before


def test_endless_data_is_cut_at_the_limit(publisher: MetadataPublisher, device: CheckClient) -> None:
    for path in ("timestamp.json", "stable.json", "fleet.json"):
        endless = replace_file(path, b" " * (8 * 1024 * 1024))
        with pytest.raises(TooLarge):
            device.check(publisher.published, endless)


def test_a_damaged_target_is_a_digest_mismatch(publisher: MetadataPublisher, device: CheckClient) -> None:
    path = next((publisher.published / "targets" / "bundles" / FAMILY).glob("*.json"))
    changed = path.read_bytes().replace(b"1.0.0", b"1.0.9")
    with pytest.raises(DigestMismatch):
        device.check(publisher.published, replace_file(path.name, changed))


def test_metadata_that_is_not_json_is_malformed(publisher: MetadataPublisher, device: CheckClient) -> None:
    with pytest.raises(Malformed):
        device.check(publisher.published, replace_file("timestamp.json", b"<html>captive portal</html>"))


def test_what_is_not_there_and_what_does_not_answer_are_unavailable(
    publisher: MetadataPublisher, device: CheckClient
) -> None:
    with pytest.raises(NotFound):
        device.check(publisher.folder / "nowhere")

    def dead(url: str, _max_bytes: int) -> bytes:
        raise DownloadFailed(f"{url}: connection refused")

    with pytest.raises(DownloadFailed) as unavailable:
        device.check(publisher.published, dead)
    assert "connection refused" in unavailable.value.message


def test_two_checks_at_a_time_do_not_share_a_cache(publisher: MetadataPublisher, device: CheckClient) -> None:
    def nested(url: str, max_bytes: int) -> bytes:
        with pytest.raises(CheckInProgress):
            device.check(publisher.published)
        return fetch_file(url, max_bytes)

    assert device.check(publisher.published, nested).manifest.version == "1.0.0"


def test_a_copy_of_the_shop_is_the_same_repository(
    publisher: MetadataPublisher, pristine_publisher: MetadataPublisher
) -> None:
    other = copy_publisher(pristine_publisher, publisher.folder / "copy")
    assert other.repository.repository_id == publisher.repository.repository_id
