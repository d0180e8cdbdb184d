"""A piece of work of any kind, with its place in the patch."""

from dataclasses import dataclass

from packager.diff.copies import CopyJob
from packager.diff.edits import EditJob
from packager.diff.jobs import TensorJob
from packager.diff.raw import RawJob

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
