"""A piece of work of any kind, with its place in the patch."""

from dataclasses import dataclass

from packager.diff.encode.copy_job import CopyJob
from packager.diff.encode.encode_edits import EditJob
from packager.diff.encode.encode_untyped import RawJob
from packager.diff.encode.tensor_job import TensorJob

Job = CopyJob | EditJob | RawJob | TensorJob


@dataclass(frozen=True, slots=True)
class Planned:
    """A job and how the report names it."""

    start: int
    job: Job
    path: str
    name: str
    dtype: str
    shape: tuple[int, ...]
