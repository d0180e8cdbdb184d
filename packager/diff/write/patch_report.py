"""What making a patch reports: the figures for the manifest, and where the bytes went."""

from dataclasses import dataclass

from bundle.strict_json import JSON


@dataclass(frozen=True, slots=True)
class PatchRow:
    """One tensor or one stretch of other bytes of the target.

    Attributes:
        path: the file of the bundle.
        name: the tensor's name, or what the stretch is.
        dtype: element type, "" for bytes.
        shape: dimensions; () where unknown.
        target_bytes: bytes in the target.
        patch_bytes: bytes in the patch; shared frames are split by target bytes.
        predictor: how the base was used.
        coder: how the rest was coded.
    """

    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    target_bytes: int
    patch_bytes: int
    predictor: str
    coder: str

    def as_json(self) -> dict[str, JSON]:
        """For `--json`; bits per thousand elements are integers, as everywhere."""
        return {
            "path": self.path,
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "target_bytes": self.target_bytes,
            "patch_bytes": self.patch_bytes,
            "predictor": self.predictor,
            "coder": self.coder,
        }


@dataclass(frozen=True, slots=True)
class PatchReport:
    """One patch.

    Attributes:
        codec: name for the manifest: "zstd", "bsdiff4" or "typed".
        features: sorted names of decoder features that it needs.
        plain_size: bytes of the patch before encryption.
        peak_memory_bytes: the most that applying takes above an idle decoder.
        target_bytes: bytes of the target bundle.
        rows: where the bytes went.
    """

    codec: str
    features: tuple[str, ...]
    plain_size: int
    peak_memory_bytes: int
    target_bytes: int
    rows: tuple[PatchRow, ...]

    def as_json(self) -> dict[str, JSON]:
        """For `--json`."""
        return {
            "codec": self.codec,
            "features": list(self.features),
            "plain_size": self.plain_size,
            "peak_memory_bytes": self.peak_memory_bytes,
            "target_bytes": self.target_bytes,
            "rows": [row.as_json() for row in self.rows],
        }
