"""The request of `device-agent probe-bundle`: what the agent is to expect of a bundle.

The packager writes it. It has those parts of the manifest's entry that a device
checks a bundle against, before there is a manifest.
"""

from dataclasses import dataclass
from typing import Final

from bundle import strict_json
from bundle.contract import Health
from bundle.errors import Malformed
from bundle.files import MAX_FILES, BundleFile, check_files, parse_files
from bundle.requirements import Runtime
from bundle.strict_json import JSON, StrictObject
from bundle.variant import MAX_MODELS, ModelEntry

SCHEMA: Final = "airweights.probe-request/1"
MAX_REQUEST_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """The expectations of one bundle.

    Attributes:
        files: files of the bundle, sorted by path.
        models: the models that the agent runs.
        health: the health contract.
        runtime: what runs the models.
    """

    files: tuple[BundleFile, ...]
    models: tuple[ModelEntry, ...]
    health: Health
    runtime: Runtime

    def as_bytes(self) -> bytes:
        """Return the canonical bytes."""
        value: dict[str, JSON] = {
            "schema": SCHEMA,
            "files": [file.as_json() for file in self.files],
            "models": [model.as_json() for model in self.models],
            "health": self.health.as_json(),
            "runtime": self.runtime.as_json(),
        }
        return strict_json.encode(value)


def parse_probe_request(data: bytes) -> ProbeRequest:
    """Parse what `ProbeRequest.as_bytes` returns.

    Raises:
        Malformed: the document does not follow its schema.
        TooLarge: it is longer than MAX_REQUEST_BYTES.
    """
    what = "probe request"
    fields = StrictObject(strict_json.decode(data, what=what, max_bytes=MAX_REQUEST_BYTES), what)
    schema = fields.text("schema")
    if schema != SCHEMA:
        raise Malformed(f"{what}.schema: found {schema!r}, expected {SCHEMA!r}")
    files = parse_files(fields.objects("files", max_items=MAX_FILES))
    check_files(files)
    out = ProbeRequest(
        files=files,
        models=tuple(ModelEntry.parse(row) for row in fields.objects("models", max_items=MAX_MODELS)),
        health=Health.parse(fields.object("health")),
        runtime=Runtime.parse(fields.object("runtime")),
    )
    fields.reject_unknown()
    return out
