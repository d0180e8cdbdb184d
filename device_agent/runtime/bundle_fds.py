"""A plain bundle that exists only in memory: a sealed memfd for each file that a model process needs."""

import fcntl
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from bundle.errors import Malformed
from bundle.files import BundleFile

DEFAULT_RUNTIME: Final = "onnxruntime"
MEMFD_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class BundleFds:
    """The files of one plain bundle. The caller owns the descriptors and closes them.

    Attributes:
        files: descriptor of a sealed memfd, by bundle path.
        model: path of the model.
        golden: path of the golden vectors, or None.
        external_data: paths of the model's external data.
        adapter: name of a personal adapter (device_agent.workers.adapter_check), or None.
        runtime: name of the runtime that loads the model (device_agent.runtime.model_backends).
    """

    files: Mapping[str, int]
    model: str
    golden: str | None = None
    external_data: tuple[str, ...] = ()
    adapter: str | None = None
    runtime: str = DEFAULT_RUNTIME

    @classmethod
    def from_files(
        cls, files: Iterable[BundleFile], fds: Mapping[str, int], runtime: str = DEFAULT_RUNTIME
    ) -> "BundleFds":
        """Create the value from a manifest's file list.

        Args:
            files: the manifest's files.
            fds: a descriptor, by bundle path, for each file with the role "model", "golden" or "external-data".
            runtime: name of the runtime.

        Raises:
            Malformed: the bundle has no model, several models, or several files of golden vectors.
        """
        by_role: dict[str, list[str]] = {"model": [], "golden": [], "external-data": []}
        for file in files:
            if file.role in by_role:
                by_role[file.role].append(file.path)
        models, goldens = by_role["model"], by_role["golden"]
        if len(models) != 1 or len(goldens) > 1:
            raise Malformed(
                f"bundle files: found {len(models)} models and {len(goldens)} files of golden vectors, "
                "expected one model and at most one file of golden vectors"
            )
        external = tuple(by_role["external-data"])
        needed = {path: fds[path] for path in (*models, *goldens, *external)}
        return cls(needed, models[0], goldens[0] if goldens else None, external, runtime=runtime)

    def external_names(self) -> dict[str, int]:
        """Return the descriptors of the external data, by path relative to the model's folder."""
        folder = PurePosixPath(self.model).parent
        return {str(PurePosixPath(path).relative_to(folder)): self.files[path] for path in self.external_data}

    def to_message(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return the fields and the descriptors of a message to a worker."""
        paths = tuple(self.files)
        value: dict[str, Any] = {"paths": paths, "model": self.model, "golden": self.golden}
        value |= {"external": self.external_data, "adapter": self.adapter, "runtime": self.runtime}
        return value, tuple(self.files[path] for path in paths)

    @classmethod
    def from_message(cls, value: Mapping[str, Any], fds: tuple[int, ...]) -> "BundleFds":
        """Parse the inverse of `to_message`, in the worker.

        Args:
            value: the message's fields.
            fds: the message's descriptors; they stay the caller's.
        """
        files = dict(zip(value["paths"], fds, strict=True))
        return cls(files, value["model"], value["golden"], tuple(value["external"]), value["adapter"], value["runtime"])

    def close(self) -> None:
        """Close all descriptors of the bundle."""
        for fd in self.files.values():
            os.close(fd)


def create_sealed_memfd(name: str, data: bytes | memoryview) -> int:
    """Create a memfd whose content can no longer be changed; the caller closes it.

    Args:
        name: shown in /proc, for people.
        data: the content.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        remaining = memoryview(data).cast("B")
        while remaining:
            remaining = remaining[os.write(fd, remaining) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
