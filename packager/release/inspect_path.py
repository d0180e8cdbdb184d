"""What is this file? A manifest, rollout, fleet document, patch, blob, envelope, or bundle folder: shown, not trusted.

Rules:
1. A kind is told by the first bytes or the document's `schema`; what is of no kind is refused, not guessed.
2. Each is read by the reader that a device uses, so what is shown here is what a device would see.
3. Nothing is decrypted, no signature is checked, nothing is written.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import Unavailable
from bundle.files import bundle_digest
from bundle.manifest import MAX_MANIFEST_BYTES, Manifest, Variant, parse_manifest
from packager.errors import UnknownFormat
from packager.models.model_package import open_package
from packager.release.plain_bundles import files_table

FRAME_MAGIC: Final = b"AWFRAME1"  # bundle.frames; not imported here, since cryptography is slow to load
ENVELOPE_MAGIC: Final = b"AWENVEL1"  # bundle.envelope
MAX_HEAD_BYTES: Final = 44  # the longest head that is looked at: a blob's
MAX_DOCUMENT_BYTES: Final = 1024 * 1024  # bundle.fleet.MAX_FLEET_BYTES, the largest document


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found: `kind` names it, `facts` are for `--json`, `lines` for a person."""

    kind: str
    facts: dict[str, object]
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """For `--json` (docs/schemas/bundle-inspect.json)."""
        return {"kind": self.kind, **self.facts}

    def as_text(self) -> str:
        """A table for a person."""
        return "\n".join(self.lines)


def inspect_path(path: Path) -> Inspection:
    """Look at a file or folder.

    Raises:
        NotRecognized: nothing of these.
        Refused kinds: one of these, but malformed.
    """
    if path.is_dir():
        return _inspect_bundle(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(MAX_HEAD_BYTES)
    except FileNotFoundError as error:
        raise UnknownFormat(f"{path}: no such file or folder") from error
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(b"\x89AWPATCH"):
        return _inspect_patch(path)
    if head.startswith(FRAME_MAGIC):
        return _inspect_blob(path, head)
    if head.startswith(ENVELOPE_MAGIC):
        return _inspect_envelope(path)
    if head.lstrip()[:1] == b"{":
        return _inspect_document(path)
    raise UnknownFormat(
        f"{path}: starts with {head[:8].hex() or 'nothing'}, expected a manifest, rollout, fleet document, "
        "patch, blob, envelope or bundle folder",
        hint="TUF metadata is shown by `packager repo status`",
    )


def _inspect_document(path: Path) -> Inspection:
    data = path.read_bytes()
    if len(data) > MAX_DOCUMENT_BYTES:
        raise UnknownFormat(f"{path}: a JSON file of {len(data)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnknownFormat(f"{path}: starts like JSON and is none: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    readers: dict[str, Callable[[bytes], Inspection]] = {
        "airweights.manifest": _inspect_manifest,
        "airweights.rollout": _inspect_rollout,
        "airweights.fleet": _inspect_fleet,
    }
    reader = readers.get(str(schema).partition("/")[0])
    if reader is None:
        raise UnknownFormat(
            f"{path}: a JSON document with schema {schema!r}, expected one of {', '.join(readers)}",
            hint="TUF metadata is shown by `packager repo status`",
        )
    return reader(data)


def _inspect_manifest(data: bytes) -> Inspection:
    manifest = parse_manifest(data[: MAX_MANIFEST_BYTES + 1])
    facts: dict[str, object] = {
        "digest": manifest.digest_without_patches(),
        "bytes": len(data),
        "manifest": manifest.as_json(),
        "bundles": {name: variant.digest for name, variant in manifest.variants},
    }
    return Inspection("manifest", facts, tuple(_manifest_lines(manifest)))


def _manifest_lines(manifest: Manifest) -> list[str]:
    lines = [
        f"manifest of {manifest.family} {manifest.version}, counter {manifest.counter}, floor {manifest.min_counter}",
        f"  digest    {manifest.digest_without_patches()} (without patches)",
        f"  channels  {', '.join(manifest.channels)}",
        f"  created   {manifest.created}, for agents from {manifest.min_agent}",
    ]
    for name, variant in manifest.variants:
        lines += _variant_lines(name, variant)
    return lines


def _variant_lines(name: str, variant: Variant) -> list[str]:
    asked = variant.requires
    needs = [
        f"onnxruntime >= {asked.onnxruntime_min}"
        + (f", < {asked.onnxruntime_below}" if asked.onnxruntime_below else ""),
        f"{asked.memory_bytes:,} bytes memory",
        f"{asked.storage_bytes:,} bytes storage",
        *asked.arch,
        *asked.cpu_features,
    ]
    made = variant.quantization
    lines = [
        f"variant {name}: {variant.plain_size:,} bytes, bundle digest {variant.digest}",
        f"  needs     {', '.join(needs)}",
        f"  weights   {made.scheme}, {made.stability}, gate {made.verdict}",
    ]
    for side, tensors in (("takes", variant.contract.inputs), ("gives", variant.contract.outputs)):
        lines += [f"  {side}     {t.name}: {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors]
    lines.append(files_table(variant.files))
    for patch in variant.patches:
        base = f"from {patch.base[:16]}…" if patch.base else "from nothing"
        lines.append(f"  patch {base}: {patch.size:,} bytes, {patch.codec}, blob {patch.blob[:16]}…")
    lines += [f"  {key}: {value}" for key, value in variant.provenance]
    return lines


def _inspect_rollout(data: bytes) -> Inspection:
    from bundle.rollout import parse_rollout

    rollout = parse_rollout(data)
    who = ", ".join(rollout.cohorts) or "every cohort"
    lines = (
        f"rollout of {rollout.family}, channel {rollout.channel}: {rollout.version} (counter {rollout.counter})",
        f"  for       {rollout.percent_bp / 100:g} % of {who}{', HALTED' if rollout.halted else ''}",
        f"  manifest  {rollout.manifest_digest}",
    )
    return Inspection("rollout", {"rollout": rollout.as_json()}, lines)


def _inspect_fleet(data: bytes) -> Inspection:
    from bundle.fleet import parse_fleet

    fleet = parse_fleet(data)
    cohorts = [{"name": cohort.name, "epoch": cohort.epoch} for cohort in fleet.cohorts]
    lines = [f"fleet document: {fleet.devices} devices, registry digest {fleet.registry_digest}"]
    lines += [f"  cohort {cohort.name}, epoch {cohort.epoch}" for cohort in fleet.cohorts]
    facts: dict[str, object] = {
        "devices": fleet.devices,
        "registry_digest": fleet.registry_digest,
        "cohorts": cohorts,
    }
    return Inspection("fleet", facts, tuple(lines))


def _inspect_patch(path: Path) -> Inspection:
    from bundle.patch.container import read_frames, read_header
    from bundle.patch.limits import DEFAULT_LIMITS

    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    with path.open("rb") as stream:
        header = read_header(stream, DEFAULT_LIMITS)
        for frame in read_frames(stream, header):
            counts[frame.op.name.lower()] += 1
            sizes[frame.op.name.lower()] += len(frame.payload)
    base = bundle_digest(header.base) if header.base else None
    operations = {name: {"frames": counts[name], "bytes": sizes[name]} for name in sorted(counts)}
    facts: dict[str, object] = {
        "bytes": path.stat().st_size,
        "from": base,
        "to": bundle_digest(header.target),
        "features": list(header.features),
        "peak_memory": header.declared_limits.memory_bound_bytes(),
        "operations": operations,
        "files": [file.as_json() for file in header.target],
    }
    lines = [
        f"patch of {path.stat().st_size:,} bytes, {'from ' + base if base else 'from nothing'}",
        f"  to        {bundle_digest(header.target)}",
        f"  features  {', '.join(header.features) or 'none'}; applying takes "
        f"{header.declared_limits.memory_bound_bytes():,} bytes",
        *(f"  {name:<9} {row['frames']} frames, {row['bytes']:,} bytes" for name, row in operations.items()),
        files_table(header.target),
    ]
    return Inspection("patch", facts, tuple(lines))


def _inspect_blob(path: Path, head: bytes) -> Inspection:
    import hashlib

    from bundle.frames import HEADER_BYTES, TAG_BYTES, parse_frame_size

    frame_bytes = parse_frame_size(head[:HEADER_BYTES])
    size = path.stat().st_size
    frames = -(-(size - HEADER_BYTES) // (frame_bytes + TAG_BYTES))
    with path.open("rb") as stream:
        name = hashlib.file_digest(stream, "sha256").hexdigest()
    plain = size - HEADER_BYTES - frames * TAG_BYTES
    facts: dict[str, object] = {
        "bytes": size,
        "sha256": name,
        "frame_bytes": frame_bytes,
        "frames": frames,
        "plain_size": plain,
    }
    lines = (
        f"encrypted blob of {size:,} bytes: {frames} frames of {frame_bytes:,}, {plain:,} bytes inside",
        f"  name      {name}",
    )
    return Inspection("blob", facts, lines)


def _inspect_envelope(path: Path) -> Inspection:
    from bundle.envelope import ENCAPSULATION_BYTES, MAGIC, MAX_ENVELOPE_BYTES

    size = path.stat().st_size
    sealed = size - len(MAGIC) - ENCAPSULATION_BYTES
    if sealed <= 0 or size > MAX_ENVELOPE_BYTES:
        raise UnknownFormat(f"{path}: an envelope of {size} bytes, expected up to {MAX_ENVELOPE_BYTES}")
    lines = (f"envelope of {size:,} bytes for {path.name}: X-Wing, {sealed} bytes sealed",)
    return Inspection("envelope", {"bytes": size, "sealed_bytes": sealed, "recipient": path.name}, lines)


def _inspect_bundle(path: Path) -> Inspection:
    found = open_package(path)
    digest = bundle_digest(found.files)
    plain = sum(file.size for file in found.files)
    facts: dict[str, object] = {"bundle": digest, "plain_size": plain, "files": [f.as_json() for f in found.files]}
    lines = (f"bundle of {plain:,} bytes, digest {digest}", files_table(found.files))
    return Inspection("bundle", facts, lines)
