"""A plain bundle that exists only in memory: a sealed memfd for each file that a model process needs."""

import fcntl
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final

from bundle.errors import Malformed
from bundle.files import BundleFile
from bundle.providers import CPU
from bundle.requirements import Runtime
from bundle.variant import ModelEntry

DEFAULT_RUNTIME: Final = "onnxruntime"
MEMFD_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class FurtherModel:
    """A model of a bundle beside the first one.

    Attributes:
        name: name of the model.
        model: path of the model.
        golden: path of the golden vectors, or None.
    """

    name: str
    model: str
    golden: str | None


@dataclass(frozen=True, slots=True)
class BundleFds:
    """The files of one plain bundle. The caller owns the descriptors and closes them.

    Attributes:
        files: descriptor of a sealed memfd, by bundle path.
        model: path of the model; of the first one if there are several.
        golden: path of its golden vectors, or None.
        external_data: paths of the external data of all models.
        adapter: name of a personal adapter (device_agent.workers.adapter_check), or None.
        runtime: name of the runtime that loads the models (device_agent.runtime.model_backends).
        name: name of the first model.
        further: the other models, in the order of the manifest.
        provider: the execution provider that the models are for (bundle.providers).
        options: session options of the models (bundle.session_options).
    """

    files: Mapping[str, int]
    model: str
    golden: str | None = None
    external_data: tuple[str, ...] = ()
    adapter: str | None = None
    runtime: str = DEFAULT_RUNTIME
    name: str = "model"
    further: tuple[FurtherModel, ...] = ()
    provider: str = CPU
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_models(
        cls,
        models: Sequence[ModelEntry],
        files: Iterable[BundleFile],
        fds: Mapping[str, int],
        runtime: Runtime,
    ) -> "BundleFds":
        """Create the value from a manifest's lists of models and files.

        Args:
            models: the manifest's models; at least one.
            files: the manifest's files.
            fds: a descriptor, by bundle path, for each file with the role "model", "golden" or "external-data".
            runtime: the variant's runtime, provider and session options.

        Raises:
            Malformed: the bundle has no model.
        """
        if not models:
            raise Malformed("variant.models: found none, expected at least one")
        first, *others = models
        external = tuple(file.path for file in files if file.role == "external-data")
        named = (path for model in models for path in (model.file, model.golden) if path is not None)
        needed = {path: fds[path] for path in (*named, *external)}
        further = tuple(FurtherModel(model.name, model.file, model.golden) for model in others)
        out = cls(needed, first.file, first.golden, external, None, runtime.name, first.name, further)
        return replace(out, provider=runtime.provider, options=runtime.options)

    def each_model(self) -> "tuple[BundleFds, ...]":
        """Return a value for each model, with that model only; they share the descriptors."""
        first = replace(self, further=())
        return (first, *(replace(first, name=m.name, model=m.model, golden=m.golden) for m in self.further))

    def with_golden_of(self, other: "BundleFds") -> "BundleFds":
        """Return the same models with the golden vectors of the same models of another bundle.

        Args:
            other: a bundle whose models have the same names.
        """
        golden = {part.name: part.golden for part in other.each_model()}
        fds = {path: other.files[path] for path in golden.values() if path is not None}
        further = tuple(replace(model, golden=golden[model.name]) for model in self.further)
        return replace(self, files={**self.files, **fds}, golden=golden[self.name], further=further)

    def external_names(self) -> dict[str, int]:
        """Return the descriptors of the external data, by path relative to the model's folder."""
        folder = PurePosixPath(self.model).parent
        paths = {path: PurePosixPath(path) for path in self.external_data}
        return {
            str(path.relative_to(folder)): self.files[text]
            for text, path in paths.items()
            if path.is_relative_to(folder)
        }

    def to_message(self) -> tuple[dict[str, Any], tuple[int, ...]]:
        """Return the fields and the descriptors of a message to a worker."""
        paths = tuple(self.files)
        value: dict[str, Any] = {"paths": paths, "model": self.model, "golden": self.golden}
        value |= {"external": self.external_data, "adapter": self.adapter, "runtime": self.runtime, "name": self.name}
        value |= {"provider": self.provider, "options": self.options}
        value["further"] = [[model.name, model.model, model.golden] for model in self.further]
        return value, tuple(self.files[path] for path in paths)

    @classmethod
    def from_message(cls, value: Mapping[str, Any], fds: tuple[int, ...]) -> "BundleFds":
        """Parse the inverse of `to_message`, in the worker.

        Args:
            value: the message's fields.
            fds: the message's descriptors; they stay the caller's.
        """
        files = dict(zip(value["paths"], fds, strict=True))
        return cls(
            files,
            value["model"],
            value["golden"],
            tuple(value["external"]),
            value["adapter"],
            value["runtime"],
            value["name"],
            tuple(FurtherModel(*row) for row in value["further"]),
            value["provider"],
            tuple((name, text) for name, text in value["options"]),
        )

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
