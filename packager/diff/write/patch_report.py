"""The report of a patch: figures for the manifest, and where the bytes went."""

from dataclasses import dataclass

from bundle.strict_json import JSON


@dataclass(frozen=True, slots=True)
class PatchRow:
    """One job: a tensor, several small ones, or untyped bytes of the target.

    Attributes:
        path: the file of the bundle; "" if several files share the job.
        name: the tensor's name, or a description of the job.
        dtype: element type; "" for untyped bytes.
        shape: dimensions; () if unknown.
        target_bytes: bytes in the target.
        patch_bytes: bytes in the patch.
        predictor: how the base was used.
        coder: how the residuals or bytes were compressed.
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
        """Return the row for `--json`."""
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
    """The figures of one patch.

    Attributes:
        codec: name for the manifest: "zstd", "bsdiff4" or "typed".
        features: sorted names of the decoder features that the patch needs.
        plain_size: bytes of the patch before encryption.
        peak_memory_bytes: maximum memory that applying takes above an idle decoder, in bytes.
        target_bytes: bytes of the target bundle.
        rows: one per job.
    """

    codec: str
    features: tuple[str, ...]
    plain_size: int
    peak_memory_bytes: int
    target_bytes: int
    rows: tuple[PatchRow, ...]

    def as_json(self) -> dict[str, JSON]:
        """Return the report for `--json`."""
        return {
            "codec": self.codec,
            "features": list(self.features),
            "plain_size": self.plain_size,
            "peak_memory_bytes": self.peak_memory_bytes,
            "target_bytes": self.target_bytes,
            "rows": [row.as_json() for row in self.rows],
        }
