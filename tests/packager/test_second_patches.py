"""Which releases get a second patch, for devices without the decoders of typed patches."""

from pathlib import Path

import pytest

from bundle.files import BundleDirectory, BundleFile
from bundle.requirements import Runtime
from packager.diff.write.patch_report import PatchReport
from packager.release.steps.diff import MAX_SECOND_PATCH_BYTES, needs_second_patch


@pytest.mark.parametrize(
    ("runtime", "features", "has_base", "size", "expected"),
    [
        ("none", ("edit", "stream"), True, 100, True),
        ("app", ("pcodec", "typed"), True, MAX_SECOND_PATCH_BYTES, True),
        ("app", ("pcodec", "typed"), True, MAX_SECOND_PATCH_BYTES + 1, False),
        ("none", ("delta", "stream"), True, 100, False),
        ("none", ("edit",), False, 10 * MAX_SECOND_PATCH_BYTES, True),
        ("none", ("typed",), False, 100, True),
        ("none", ("stream",), False, 100, False),
        ("onnxruntime", ("edit", "typed"), True, 100, False),  # its devices have numpy
        ("onnxruntime", ("typed",), False, 100, False),
        ("onnxruntime", ("pcodec",), False, 100, True),
    ],
)
def test_a_second_patch_is_made_where_devices_may_lack_the_decoder(
    runtime: str, features: tuple[str, ...], has_base: bool, size: int, expected: bool
) -> None:
    bundle = BundleDirectory(Path("bundle"), (BundleFile("labels/words.txt", "labels", size, "0" * 64),))
    report = PatchReport("typed", features, 50, 0, size, ())
    found = needs_second_patch(Runtime(runtime), report, bundle if has_base else None, bundle)
    assert found == expected
