"""How a release was built, written down while it is built and kept beside its keys: the source of its attestations.

Rules:
1. Files are named without their folders: a record goes to others, and where things lay on a build machine is nobody's
   business.
2. The signed manifest is what counts; the record says more about the same release and is of no use without it.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from packager.errors import WorkspaceDamaged

BUILD_RECORD_FORMAT: Final = "airweights.build-record/1"


@dataclass(frozen=True, slots=True)
class Material:
    """A file that went into the release.

    Attributes:
        role: "model", "external-data", "inputs", or the role of a further file.
        name: without folders.
        sha256: of its content; of the whole list for a folder of inputs.
    """

    role: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """See above.

    Attributes:
        plan: the release file as it was understood.
        materials: what went in, without doubles.
        tools: versions by name.
        variants: by name: the quantizer's report, the gate's, the update's; each plain JSON, or None.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    materials: tuple[Material, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """The file's content."""
        # what JSON has no form for is told by its name: a record is no reason for a release to fail
        return json.dumps(
            {"schema": BUILD_RECORD_FORMAT, **asdict(self)}, sort_keys=True, indent=1, default=str
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> "BuildRecord":
        """Inverse of `as_bytes`. Raises WorkspaceRefused."""
        try:
            value = json.loads(data)
            if value.pop("schema") != BUILD_RECORD_FORMAT:
                raise ValueError("another schema")
            materials = tuple(Material(**row) for row in value.pop("materials"))
            return cls(materials=materials, **value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkspaceDamaged(f"a build record is damaged: {error}", hint="restore it from a copy") from error
