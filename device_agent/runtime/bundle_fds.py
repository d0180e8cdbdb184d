"""A plain bundle, in memory only: a sealed memfd for each file that a model process needs."""

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from bundle.errors import Malformed
from bundle.files import BundleFile

MEMFD_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class BundleFds:
    """The files of one plain bundle. The caller owns and closes the descriptors.

    Attributes:
        files: bundle path to descriptor of a sealed memfd.
        model: path of the model.
        golden: path of the golden vectors, or None.
        external: paths of the model's external data.
        adapter: name of a personal adapter (device_agent.workers.adapter_check), or None.
    """

    files: Mapping[str, int]
    model: str
    golden: str | None = None
    external_data: tuple[str, ...] = ()
    adapter: str | None = None

    @classmethod
    def from_files(cls, files: Iterable[BundleFile], fds: Mapping[str, int]) -> "BundleFds":
        """From a manifest's file list and a descriptor for each of the files with a role that the runtime needs.

        Raises:
            MalformedRefused: not exactly one model, or several files of golden vectors.
        """
        by_role: dict[str, list[str]] = {"model": [], "golden": [], "external-data": []}
        for file in files:
            if file.role in by_role:
                by_role[file.role].append(file.path)
        models, goldens = by_role["model"], by_role["golden"]
        if len(models) != 1 or len(goldens) > 1:
            raise Malformed(
                f"bundle files: found {len(models)} models and {len(goldens)} goldens, expected one and at most one"
            )
        external = tuple(by_role["external-data"])
        needed = {path: fds[path] for path in (*models, *goldens, *external)}
        return cls(needed, models[0], goldens[0] if goldens else None, external)

    def external_names(self) -> dict[str, int]:
        """The external data under the names that the model calls them by: paths relative to its folder."""
        folder = PurePosixPath(self.model).parent
        return {str(PurePosixPath(path).relative_to(folder)): self.files[path] for path in self.external_data}

    def to_message(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """For a child: an object and the descriptors beside it."""
        paths = tuple(self.files)
        value: dict[str, Any] = {"paths": paths, "model": self.model, "golden": self.golden}
        value |= {"external": self.external_data, "adapter": self.adapter}
        return value, tuple(self.files[path] for path in paths)

    @classmethod
    def from_message(cls, value: Mapping[str, Any], fds: tuple[int, ...]) -> "BundleFds":
        """Inverse of `as_message`, in the child."""
        files = dict(zip(value["paths"], fds, strict=True))
        return cls(files, value["model"], value["golden"], tuple(value["external"]), value["adapter"])

    def close(self) -> None:
        """Close all descriptors."""
        for fd in self.files.values():
            os.close(fd)


def create_sealed_memfd(name: str, data: bytes | memoryview) -> int:
    """A new memfd with `data` that nobody can change any more; the caller closes it."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        left = memoryview(data).cast("B")
        while left:
            left = left[os.write(fd, left) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
