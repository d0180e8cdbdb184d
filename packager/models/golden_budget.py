"""The bytes that golden vectors may take of a download (docs/release-file.md, `golden_bytes`)."""

from typing import Final

MIN_UPDATE_BYTES: Final = 1_024  # golden bytes in an update, or UPDATE_SHARE of the model's own patch
UPDATE_SHARE: Final = 0.10
MIN_DOWNLOAD_BYTES: Final = 64 * 1024  # golden bytes in a first download, or DOWNLOAD_SHARE of the model
DOWNLOAD_SHARE: Final = 0.05


def update_budget(patch_bytes: int, golden_bytes: int | None = None) -> int:
    """Return the bytes that golden vectors may take of an update.

    Args:
        patch_bytes: bytes of the model's own patch.
        golden_bytes: the release file's limit, or None.
    """
    return golden_bytes if golden_bytes is not None else max(MIN_UPDATE_BYTES, int(UPDATE_SHARE * patch_bytes))


def download_budget(model_bytes: int, golden_bytes: int | None = None) -> int:
    """Return the bytes that golden vectors may take of a first download.

    Args:
        model_bytes: bytes of the model with its external data.
        golden_bytes: the release file's limit, or None.
    """
    return golden_bytes if golden_bytes is not None else max(MIN_DOWNLOAD_BYTES, int(DOWNLOAD_SHARE * model_bytes))
