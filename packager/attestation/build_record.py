"""The build record: how a release was built, stored beside its keys, the source of attestations.

- Files are named without their folders, since attestations are public and paths of a build machine are private.
- The signed manifest takes precedence; the record only adds what a manifest does not contain.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from packager.errors import WorkspaceDamaged

BUILD_RECORD_FORMAT: Final = "airweights.build-record/1"


@dataclass(frozen=True, slots=True)
class Material:
    """An input file of the release.

    Attributes:
        role: "model", "external-data", "inputs", or the role of another file.
        name: the file's name, without folders.
        sha256: SHA-256 of its content, hexadecimal; for a folder of inputs, of the list of its files.
    """

    role: str
    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """The record of one release's build.

    Attributes:
        plan: the parsed release file, as JSON values.
        materials: the input files, without duplicates.
        tools: name → version.
        variants: variant name → the reports of quantizer, gate and update-aware quantizer, as JSON values or None.
    """

    plan: dict[str, Any] = field(default_factory=dict)
    materials: tuple[Material, ...] = ()
    tools: dict[str, str] = field(default_factory=dict)
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)

    def as_bytes(self) -> bytes:
        """Return the content of the record's file."""
        # values without a JSON form are stored as text: the record must not make a release fail
        return json.dumps(
            {"schema": BUILD_RECORD_FORMAT, **asdict(self)}, sort_keys=True, indent=1, default=str
        ).encode()

    @classmethod
    def parse(cls, data: bytes) -> "BuildRecord":
        """Parse the content of a record's file.

        Raises:
            WorkspaceDamaged: the data is not a build record.
        """
        try:
            value = json.loads(data)
            if value.pop("schema") != BUILD_RECORD_FORMAT:
                raise ValueError(f"expected schema {BUILD_RECORD_FORMAT!r}")
            materials = tuple(Material(**row) for row in value.pop("materials"))
            return cls(materials=materials, **value)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise WorkspaceDamaged(
                f"the build record is damaged: {error}", hint="restore private/builds from a backup"
            ) from error
