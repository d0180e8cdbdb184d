"""A ramp limits the share of devices by elapsed time, and no online role can redraw its buckets."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from bundle.ramp import RampStep, allowed_share, check_ramp, ramp_bucket, ramp_opens_after

DIGEST = "c" * 64
RAMP = (RampStep(0, 100), RampStep(86_400, 1_000), RampStep(259_200, 10_000))


@st.composite
def ramps(draw: st.DrawFn) -> tuple[RampStep, ...]:
    """Draw a ramp of 1 to 8 steps."""
    size = draw(st.integers(1, 8))
    times = sorted({0, *draw(st.lists(st.integers(1, 10**6), min_size=size - 1, max_size=size - 1, unique=True))})
    shares = sorted(draw(st.lists(st.integers(1, 10_000), min_size=len(times), max_size=len(times), unique=True)))
    return tuple(map(RampStep, times, shares))


def test_the_share_follows_the_steps() -> None:
    shares = [allowed_share(RAMP, at) for at in (0, 86_399, 86_400, 259_199, 259_200, 10**9)]
    assert shares == [100, 100, 1_000, 1_000, 10_000, 10_000]
    assert allowed_share((), 0) == 10_000


@given(ramps(), st.integers(0, 9_999), st.integers(0, 2 * 10**6))
def test_a_device_may_take_the_release_from_the_time_that_is_named(
    ramp: tuple[RampStep, ...], bucket: int, elapsed_s: int
) -> None:
    check_ramp(ramp, "ramp")
    opens = ramp_opens_after(ramp, bucket)
    assert (bucket < allowed_share(ramp, elapsed_s)) == (opens is not None and elapsed_s >= opens)


def test_the_bucket_is_the_documented_digest() -> None:
    device = "0123456789abcdef" * 4
    digest = hashlib.sha256(f"{DIGEST}\0{device}".encode()).digest()
    assert ramp_bucket(DIGEST, device) == int.from_bytes(digest, "big") % 10_000


def test_buckets_cover_the_devices_evenly() -> None:
    devices = [hashlib.sha256(bytes([n % 256, n // 256])).hexdigest() for n in range(4_000)]
    first_day = sum(ramp_bucket(DIGEST, device) < 1_000 for device in devices)
    assert 320 < first_day < 480  # 10 % of 4,000 within 4 standard deviations
