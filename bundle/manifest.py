"""The manifest: the signed JSON that describes one release of a family (docs/format.md section 3).

Rules:
- It has at most 256 KiB and is the target `bundles/<family>/<version>.json` of the release role.
- Every download is a patch. A variant lists at least one; the field `from` is the digest of the patch's base bundle, or
  null for a full download. No two patches of a variant have the same `from` and codec.
- The release digest is the digest of the canonical manifest without `patches`: patches can be added to a release later,
  and nothing else can change.
- All numbers are integers: ratios are parts per million or percent, and times and sizes have their unit in the name.
"""

from dataclasses import dataclass, replace
from typing import Final

from bundle import strict_json
from bundle.document_schema import check_schema
from bundle.errors import Malformed
from bundle.ramp import MAX_RAMP_STEPS, RampStep, parse_ramp
from bundle.requirements import NUMERIC_VERSION_PATTERN
from bundle.strict_json import JSON, NAME_PATTERN, TIMESTAMP_PATTERN, StrictObject
from bundle.variant import PatchEntry, Variant

SCHEMA: Final = "airweights.manifest/2"
MAX_MANIFEST_BYTES: Final = 256 * 1024
MAX_VARIANTS: Final = 32


@dataclass(frozen=True, slots=True)
class Manifest:
    """The description of one release.

    Attributes:
        family: family of the release.
        version: version of the release.
        counter: grows with every release of the family; devices compare (counter epoch, counter).
        min_counter: rollback floor of a device after this release; at most `counter`.
        channels: channels whose rollouts may select the release.
        min_agent: first version of the agent that can install the release.
        created: time of creation in UTC, for people.
        ramp: maximum share of devices over time, signed by the release role (bundle.ramp); empty means no limit.
        variants: pairs of name and variant, sorted by name.
    """

    family: str
    version: str
    counter: int
    min_counter: int
    channels: tuple[str, ...]
    min_agent: str
    created: str
    ramp: tuple[RampStep, ...]
    variants: tuple[tuple[str, Variant], ...]

    def variant(self, name: str) -> Variant | None:
        """Return the variant with a name, or None if the release has none."""
        return dict(self.variants).get(name)

    def as_json(self, *, has_patches: bool = True) -> dict[str, JSON]:
        """Return the manifest as a JSON object; without `patches` for the release digest."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "version": self.version,
            "counter": self.counter,
            "min_counter": self.min_counter,
            "channels": list(self.channels),
            "min_agent": self.min_agent,
            "created": self.created,
            "ramp": [step.as_json() for step in self.ramp],
            "variants": {name: variant.as_json(has_patches=has_patches) for name, variant in self.variants},
        }

    def as_bytes(self) -> bytes:
        """Return the canonical bytes, as they are published."""
        return strict_json.encode(self.as_json())

    def digest_without_patches(self) -> str:
        """Return the release digest: the SHA-256 of the canonical manifest without patches, in hexadecimal."""
        return strict_json.digest(self.as_json(has_patches=False))

    def with_patches(self, name: str, patches: tuple[PatchEntry, ...]) -> "Manifest":
        """Return the same release with other patches for one variant.

        Args:
            name: name of the variant.
            patches: its patches, which replace the present ones.
        """
        variants = tuple((n, replace(v, patches=patches) if n == name else v) for n, v in self.variants)
        return replace(self, variants=variants)


def parse_manifest(data: bytes) -> Manifest:
    """Parse a manifest strictly.

    Raises:
        AgentTooOld: the document has a later version of the format.
        Malformed: the document does not follow its schema.
        TooLarge: the document is longer than MAX_MANIFEST_BYTES.
    """
    fields = StrictObject(strict_json.decode(data, what="manifest", max_bytes=MAX_MANIFEST_BYTES), "manifest")
    check_schema(fields, SCHEMA)
    variants = fields.mapping("variants", NAME_PATTERN, max_items=MAX_VARIANTS)
    out = Manifest(
        family=fields.text("family", NAME_PATTERN),
        version=fields.text("version", strict_json.VERSION_PATTERN),
        counter=fields.integer("counter", 1),
        min_counter=fields.integer("min_counter", 0),
        channels=fields.texts("channels", NAME_PATTERN, max_items=64),
        min_agent=fields.text("min_agent", NUMERIC_VERSION_PATTERN),
        created=fields.text("created", TIMESTAMP_PATTERN),
        ramp=parse_ramp(fields.objects("ramp", max_items=MAX_RAMP_STEPS), f"{fields.where}.ramp"),
        variants=tuple((name, Variant.parse(variants[name])) for name in sorted(variants)),
    )
    fields.reject_unknown()
    if not out.variants:
        raise Malformed("manifest.variants: found none, expected at least one")
    if out.min_counter > out.counter:
        raise Malformed(f"manifest.min_counter: found {out.min_counter}, expected at most counter {out.counter}")
    return out
