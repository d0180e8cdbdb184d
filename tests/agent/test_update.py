"""Updates without a daemon: from a repository on loopback to a sealed bundle that is staged.

Where the supervisor decides, `update_in_process` calls the handlers of the workers in this process, which saves their
starts; the probe is always a process.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from device_agent.errors import NoSpace
from device_agent.policy.attempt import Outcome, UpdateResult
from device_agent.policy.journal_records import BundlePointers
from device_agent.policy.state_machine import State
from device_agent.storage.bundle_store import BundleStore
from tests.support import faulty_http_server
from tests.support.faulty_http_server import Site, respond_with_status
from tests.support.publisher import DeviceUnderTest, Publisher
from torture.in_process import InProcessWorkerPool


def update_in_process(device: DeviceUnderTest, **changes: Any) -> UpdateResult:
    """Update with the handlers of the workers in this process; `changes` are of the configuration."""
    config, store = replace(device.config, **changes), BundleStore(device.directory.root)
    return device.update(open_workers=lambda: InProcessWorkerPool(config, device.directory, store), **changes)


def _assert_result(result: UpdateResult, outcome: Outcome, reason: str = "") -> None:
    assert (result.outcome, result.reason) == (outcome, reason), result.detail


def _assert_active_1_0_0(device: DeviceUnderTest, publisher: Publisher) -> None:
    journal = device.journal()
    assert journal.pointers.active == publisher.digest("1.0.0")
    assert journal.state in (State.IDLE, State.STAGED)
    journal.close()


def test_a_first_update_stages_the_release_that_the_channel_offers(
    device: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    result = device.update()
    _assert_result(result, Outcome.STAGED)
    assert result.attempt.release == "1.0.0"
    assert site.bytes_sent("blobs/") == result.attempt.full_bytes > 0
    downloaded = result.attempt.downloaded
    assert 0 < downloaded.full - result.attempt.full_bytes < 512, "the blob and the head of its response"
    assert downloaded.metadata > 30_000
    assert downloaded.envelope > 1240
    assert downloaded.wasted == 0
    assert result.attempt.states == ("checking", "fetching", "patching", "probing", "staged")
    journal = device.journal()
    assert journal.state is State.STAGED
    assert journal.pointers == BundlePointers(candidate=publisher.digest("1.0.0"))
    journal.close()
    assert list((device.directory.root / "spool").iterdir()) == []


def test_an_update_comes_as_a_patch_from_what_is_held(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    result = installed.update()
    _assert_result(result, Outcome.STAGED)
    assert 0 < result.attempt.downloaded.patch - result.attempt.patch_bytes < 512
    assert result.attempt.patch_bytes < result.attempt.full_bytes
    assert installed.update().outcome is Outcome.STAGED
    assert site.bytes_sent("blobs/") == result.attempt.patch_bytes, "what is staged is not fetched again"


def test_nothing_new_is_nothing_done(installed: DeviceUnderTest, site: Site) -> None:
    _assert_result(update_in_process(installed), Outcome.NOTHING_NEW)
    assert site.bytes_sent("blobs/") == site.bytes_sent("envelopes/") == 0


def test_a_tampered_blob_is_refused_and_not_blamed_on_the_release(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    for path in publisher.blobs("1.1.0"):
        data = bytearray((publisher.published / path).read_bytes())
        data[len(data) // 2] ^= 1
        site.faults.append(faulty_http_server.replace_body(path, bytes(data)))
    _assert_result(installed.update(), Outcome.REFUSED, "digest-mismatch")
    _assert_active_1_0_0(installed, publisher)
    site.faults.clear()
    _assert_result(installed.update(), Outcome.STAGED)


def test_an_envelope_for_somebody_else_is_refused_and_not_blamed_on_the_release(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    site.faults.append(faulty_http_server.only_below("metadata/archives/", respond_with_status(404)))
    site.faults.append(faulty_http_server.only_below("envelopes/content", _flip_last_bit))
    _assert_result(update_in_process(installed), Outcome.REFUSED, "not-authentic")
    site.faults.clear()
    _assert_result(update_in_process(installed), Outcome.STAGED)


def _flip_last_bit(exchange: faulty_http_server.Exchange) -> bool:
    exchange.data = exchange.data[:-1] + bytes([exchange.data[-1] ^ 1])
    return False


def test_a_device_that_is_not_enrolled_is_told_so(publisher: Publisher, site: Site, tmp_path: Path) -> None:
    other_device = DeviceUnderTest.create(tmp_path / "stranger", site.url, publisher.root)
    result = update_in_process(other_device)
    _assert_result(result, Outcome.UNAVAILABLE, "not-enrolled")
    assert "not enrolled in cohort 'default' (epoch 1)" in result.detail
    assert not site.bytes_sent("blobs/")


def test_an_unreachable_repository_leaves_everything_as_it_is(installed: DeviceUnderTest, publisher: Publisher) -> None:
    away = replace(installed.config, repository_url="http://127.0.0.1:9")
    _assert_result(
        update_in_process(installed, repository_url=away.repository_url), Outcome.UNAVAILABLE, "connection-failed"
    )
    _assert_active_1_0_0(installed, publisher)


def test_damaged_weights_fail_the_probe_and_are_not_tried_twice(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.release("1.2.0", seed=2, drill="damaged-weights", is_shared=True)
    _assert_result(installed.update(), Outcome.UNFIT, "golden-mismatch")
    sent = site.bytes_sent("blobs/")
    plan = json.loads(installed.command("plan", "--json").stdout)
    assert (plan["outcome"], plan["reason"]) == ("refused", "bundle-quarantined")
    _assert_result(installed.update(), Outcome.REFUSED, "bundle-quarantined")
    assert site.bytes_sent("blobs/") == sent
    _assert_active_1_0_0(installed, publisher)
    publisher.offer("1.1.0")
    _assert_result(installed.update(), Outcome.STAGED)


def test_a_rollout_that_is_not_for_this_device_waits(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0", percent_bp=0)
    result = update_in_process(installed)
    _assert_result(result, Outcome.WAITING, "not-eligible")
    assert "not-in-percentage" in result.detail
    publisher.offer("1.1.0", halted=True)
    assert "halted" in update_in_process(installed).detail


def test_a_release_that_is_withdrawn_after_it_was_armed_is_not_taken_up_again(
    installed: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.offer("1.1.0")
    _assert_result(update_in_process(installed), Outcome.STAGED)
    publisher.withdraw("1.1.0")
    _assert_result(update_in_process(installed), Outcome.REFUSED, "release-withdrawn")
    _assert_active_1_0_0(installed, publisher)


def test_metered_connections_have_a_limit(installed: DeviceUnderTest, publisher: Publisher, site: Site) -> None:
    publisher.offer("1.1.0")
    metered = replace(installed.config.update, metered=True, metered_limit_bytes=10)
    result = update_in_process(installed, update=metered)
    _assert_result(result, Outcome.UNAVAILABLE, "metered-limit-exceeded")
    assert site.bytes_sent("blobs/") == 0


def test_the_metered_limit_bounds_what_all_attempts_receive(
    device: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    site.ranges = False
    site.faults = [faulty_http_server.only_below("blobs/", faulty_http_server.cut_after(8000))]
    limit = 110_000
    metered = replace(device.config.update, metered=True, metered_limit_bytes=limit)
    first, second = device.update(update=metered), device.update(update=metered)
    _assert_result(first, Outcome.UNAVAILABLE, "download-failed")
    _assert_result(second, Outcome.UNAVAILABLE, "metered-limit-exceeded")
    received = first.attempt.downloaded.total + second.attempt.downloaded.total
    assert limit - 5000 < received <= limit
    assert second.attempt.downloaded.wasted > 2 * 8000, "what was received before"
    requests = len([request for request in site.requests if request.path.startswith("blobs/")])
    _assert_result(device.update(update=metered), Outcome.UNAVAILABLE, "metered-limit-exceeded")
    assert len([request for request in site.requests if request.path.startswith("blobs/")]) == requests
    site.faults.clear()
    _assert_result(device.update(), Outcome.STAGED)


def test_space_is_checked_from_signed_sizes_before_a_byte_is_fetched(
    installed: DeviceUnderTest, publisher: Publisher, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.offer("1.1.0")
    monkeypatch.setattr(BundleStore, "free_bytes", lambda _self: 1000)
    result = update_in_process(installed)
    _assert_result(result, Outcome.UNAVAILABLE, "no-space")
    assert site.bytes_sent("blobs/") == 0
    _assert_active_1_0_0(installed, publisher)


def test_the_check_for_space_names_what_is_missing(tmp_path: Path) -> None:
    store = BundleStore(tmp_path)
    with pytest.raises(NoSpace, match=str(2**60)):
        store.check_space(2**60)
    store.check_space(1)


def test_a_download_goes_on_after_the_agent_was_cut_off(
    installed: DeviceUnderTest, publisher: Publisher, site: Site
) -> None:
    publisher.offer("1.1.0")
    first = 500
    site.faults = [
        faulty_http_server.only_below("blobs/", faulty_http_server.only_first(1, faulty_http_server.cut_after(first)))
    ]
    site.faults.append(faulty_http_server.only_below("blobs/", faulty_http_server.respond_with_status(503)))
    _assert_result(installed.update(), Outcome.UNAVAILABLE, "download-failed")
    spooled = sum(path.stat().st_size for path in (installed.directory.root / "spool").glob("*.part"))
    assert spooled == first
    site.faults.clear()
    result = installed.update()
    _assert_result(result, Outcome.STAGED)
    assert 0 < result.attempt.downloaded.patch - (result.attempt.patch_bytes - first) < 512


def test_a_damaged_base_is_noticed_and_another_path_is_taken(installed: DeviceUnderTest, publisher: Publisher) -> None:
    publisher.offer("1.1.0")
    sealed = installed.directory.root / "store" / f"{publisher.digest('1.0.0')}.sealed"
    data = bytearray(sealed.read_bytes())
    for offset in range(2000, len(data), 500):
        data[offset] ^= 1
    sealed.write_bytes(data)
    result = installed.update()
    _assert_result(result, Outcome.STAGED)
    assert result.attempt.states.count("patching") == 2
    # the patch is in the spool already: to make its base anew heals the active bundle, too, if that is the cheaper path
    is_healed = _full_size(publisher, "1.0.0") < _full_size(publisher, "1.1.0")
    assert (sealed.read_bytes() != bytes(data)) == is_healed
    journal = installed.journal()
    assert journal.persistent_state.damaged_bundles == (() if is_healed else (publisher.digest("1.0.0"),))
    journal.close()


def _full_size(publisher: Publisher, version: str) -> int:
    variant = publisher.manifest(version).variant("fp32")
    assert variant is not None
    return min(patch.size for patch in variant.patches if patch.base is None)


def test_a_release_for_another_channel_or_variant_is_told_apart(
    installed: DeviceUnderTest, publisher: Publisher
) -> None:
    publisher.offer("1.1.0")
    _assert_result(update_in_process(installed, channel="beta"), Outcome.UNAVAILABLE, "no-rollout")
    other = replace(installed.config.update, variant="int4")
    result = update_in_process(installed, update=other)
    _assert_result(result, Outcome.REFUSED, "no-variant")
    assert "the release has fp32" in result.detail


def test_a_pack_on_a_stick_is_taken_like_a_server(
    installed: DeviceUnderTest, publisher: Publisher, tmp_path: Path
) -> None:
    publisher.offer("1.1.0")
    result = installed.update(repository_url=f"file://{publisher.published}")
    _assert_result(result, Outcome.STAGED)


def test_no_file_of_the_device_is_readable_by_others(installed: DeviceUnderTest) -> None:
    for path in installed.directory.root.rglob("*"):
        if path.name not in ("device.json",) and not path.is_symlink():
            assert path.parent == installed.directory.root or not path.parent.stat().st_mode & 0o077, path
