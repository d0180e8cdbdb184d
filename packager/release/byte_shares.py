"""Split the bytes of a bundle or patch into model, golden vectors and rest.

Rules:
- The model's share includes its external data. The rest is other files, headers and frames.
- Golden vectors have a budget (packager.models.golden_vectors): of a first download, a share of the model; of an
  update, a share of the model's own patch. Above it, the publisher is warned.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from bundle.files import BundleFile
from packager.diff.write.patch_report import PatchReport
from packager.models.golden_budget import download_budget, update_budget
from packager.repository.variant_table import MODEL_ROLES


@dataclass(frozen=True, slots=True)
class ByteShares:
    """The bytes of a bundle or patch.

    Attributes:
        model: bytes of the model and its external data.
        golden: bytes of the golden vectors.
        rest: all others.
    """

    model: int
    golden: int
    rest: int

    def as_json(self) -> dict[str, int]:
        """Return the row for `--json`."""
        return {"model": self.model, "golden": self.golden, "rest": self.rest}

    def as_text(self) -> str:
        """Return the shares in words."""
        return f"model {self.model:,}, golden vectors {self.golden:,}, rest {self.rest:,}"


def shares_of_files(files: Iterable[BundleFile]) -> ByteShares:
    """Return the shares of a bundle, uncompressed."""
    sizes = {"model": 0, "golden": 0, "rest": 0}
    for file in files:
        name = "model" if file.role in MODEL_ROLES else "golden" if file.role == "golden" else "rest"
        sizes[name] += file.size
    return ByteShares(**sizes)


def shares_of_patch(report: PatchReport, files: Iterable[BundleFile]) -> ByteShares | None:
    """Return the shares of a patch, or None if its codec compresses all files in one stream.

    Args:
        report: the report of the patch.
        files: the files of its target.
    """
    if any(not row.path and row.coder == "zstd" and row.predictor == "none" for row in report.rows):
        return None
    roles = {file.path: file.role for file in files}
    model = sum(row.patch_bytes for row in report.rows if roles.get(row.path) in MODEL_ROLES)
    golden = sum(row.patch_bytes for row in report.rows if roles.get(row.path) == "golden")
    return ByteShares(model, golden, report.plain_size - model - golden)


def golden_warning(golden: int, model: int, golden_bytes: int | None, *, is_update: bool) -> str | None:
    """Return a warning if golden vectors are above their budget, else None.

    Args:
        golden: bytes of the golden vectors in a patch or bundle.
        model: bytes of the model in a patch with a base, otherwise of the uncompressed model.
        golden_bytes: the release file's limit, or None.
        is_update: the patch has a base.
    """
    budget = (update_budget if is_update else download_budget)(model, golden_bytes)
    if golden <= budget:
        return None
    kind = "an update" if is_update else "a first download"
    return (
        f"golden vectors take {golden:,} bytes of {kind}, their budget is {budget:,}: "
        "give smaller inputs, lower golden, or set golden_bytes"
    )
