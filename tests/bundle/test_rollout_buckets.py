"""Devices are spread evenly over the share of a rollout, and a new salt selects another sample."""

from bundle.rollout import BASIS_POINTS, bucket


def test_a_percentage_reaches_about_that_share_of_devices() -> None:
    devices = [f"{n:064x}" for n in range(4000)]
    share = sum(bucket("spring", device) < BASIS_POINTS // 4 for device in devices) / len(devices)
    assert 0.21 < share < 0.29


def test_a_raised_percentage_keeps_the_devices_it_had() -> None:
    assert all(0 <= bucket("s", str(n)) < BASIS_POINTS for n in range(100))
    assert bucket("s", "device") == bucket("s", "device")


def test_salt_and_device_id_do_not_run_into_each_other() -> None:
    assert bucket("ab", "c") != bucket("a", "bc")
