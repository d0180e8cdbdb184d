"""A job of any kind with its position in the patch."""

from dataclasses import dataclass

from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.encode_edits import EditJob
from packager.diff.encode.encode_untyped import UntypedJob
from packager.diff.encode.tensor_job import TensorJob

Job = CopyJob | EditJob | UntypedJob | TensorJob


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job, its position, and its name in the report.

    Attributes:
        start: address of the first target byte.
        job: the work.
        path: path of the target file; "" if several files share the job.
        name: name of the job in the report.
        dtype: type of the elements; "" for untyped bytes.
        shape: shape of the array; () if unknown.
    """

    start: int
    job: Job
    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
