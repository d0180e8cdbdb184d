"""A piece of work of any kind, with its place in the patch."""

from dataclasses import dataclass

from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.encode_edits import EditJob
from packager.diff.encode.encode_untyped import UntypedJob
from packager.diff.encode.tensor_job import TensorJob

Job = CopyJob | EditJob | UntypedJob | TensorJob


@dataclass(frozen=True, slots=True)
class PlannedJob:
    """A job and how the report names it."""

    start: int
    job: Job
    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
