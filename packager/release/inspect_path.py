"""Show what a file or folder is.

Known kinds: manifest, rollout, fleet document, patch, blob, envelope shard, bundle folder.

Rules:
- The kind follows from the first bytes or the document's `schema`. A file of no known kind is refused.
- Each kind is read by the device's own reader, so the output shows what a device sees.
- Nothing is decrypted, no signature is verified, nothing is written.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundle.errors import Unavailable
from bundle.files import bundle_digest
from bundle.local_files import missing_file_hint, open_local_file, read_local_file
from bundle.manifest import Manifest, parse_manifest
from bundle.variant import Variant
from packager.errors import UnknownFormat
from packager.models.model_package import open_package
from packager.release.byte_shares import golden_warning, shares_of_files
from packager.release.plain_bundles import files_table

FRAME_MAGIC: Final = b"AWFRAME1"  # bundle.frames; not imported, because it loads cryptography
SHARD_MAGIC: Final = b"AWSHARD1"  # bundle.envelope_shard
MAX_HEAD_BYTES: Final = 44  # the longest header, that of a blob
MAX_DOCUMENT_BYTES: Final = 1024 * 1024  # bundle.fleet.MAX_FLEET_BYTES, the largest document


@dataclass(frozen=True, slots=True)
class Inspection:
    """The result of an inspection.

    Attributes:
        kind: type of the file, for example "manifest" or "patch".
        facts: fields for `--json`.
        lines: text for a terminal.
    """

    kind: str
    facts: dict[str, object]
    lines: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Return the object that `--json` prints (docs/schemas/bundle-inspect.json)."""
        return {"kind": self.kind, **self.facts}


def inspect_path(path: Path) -> Inspection:
    """Inspect a file or folder.

    Raises:
        UnknownFormat: the file does not exist, or has no known kind.
        FileNotRegular: it is a FIFO, a device or a socket.
        TooLarge: a document is larger than MAX_DOCUMENT_BYTES.
        Refused: the file has a known kind, but is malformed.
        Unavailable: the file cannot be read.
    """
    if path.is_dir():
        return _inspect_bundle(path)
    try:
        with open_local_file(path) as stream:
            head = stream.read(MAX_HEAD_BYTES)
    except FileNotFoundError as error:
        raise UnknownFormat(f"{path}: no such file or folder", hint=missing_file_hint(path)) from error
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror or error}") from error
    if head.startswith(b"\x89AWPATCH"):
        return _inspect_patch(path)
    if head.startswith(FRAME_MAGIC):
        return _inspect_blob(path, head)
    if head.startswith(SHARD_MAGIC):
        return _inspect_shard(path)
    if head.lstrip()[:1] == b"{":
        return _inspect_document(path)
    raise UnknownFormat(
        f"{path}: found first bytes {head[:8].hex() or 'none'}, expected a manifest, rollout, fleet document, "
        "patch, blob, envelope shard or bundle folder",
        hint="run `packager repo status` to show TUF metadata",
    )


def _inspect_document(path: Path) -> Inspection:
    data = read_local_file(path, MAX_DOCUMENT_BYTES)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UnknownFormat(f"{path}: not valid JSON: {error}") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    readers: dict[str, Callable[[bytes], Inspection]] = {
        "airweights.manifest": _inspect_manifest,
        "airweights.rollout": _inspect_rollout,
        "airweights.fleet": _inspect_fleet,
    }
    reader = readers.get(str(schema).partition("/")[0])
    if reader is None:
        raise UnknownFormat(
            f"{path}: found a JSON document with schema {schema!r}, expected one of {', '.join(readers)}",
            hint="run `packager repo status` to show TUF metadata",
        )
    return reader(data)


def _inspect_manifest(data: bytes) -> Inspection:
    manifest = parse_manifest(data)
    facts: dict[str, object] = {
        "digest": manifest.digest_without_patches(),
        "bytes": len(data),
        "manifest": manifest.as_json(),
        "bundles": {name: variant.digest for name, variant in manifest.variants},
    }
    return Inspection("manifest", facts, tuple(_manifest_lines(manifest)))


def _manifest_lines(manifest: Manifest) -> list[str]:
    lines = [
        f"manifest of {manifest.family} {manifest.version}, counter {manifest.counter}, "
        f"rollback floor {manifest.min_counter}",
        f"  digest    {manifest.digest_without_patches()} (without patches)",
        f"  channels  {', '.join(manifest.channels)}",
        f"  created   {manifest.created}, for agents from {manifest.min_agent}",
    ]
    for name, variant in manifest.variants:
        lines += _variant_lines(name, variant)
    return lines


def _variant_lines(name: str, variant: Variant) -> list[str]:
    requires, runtime = variant.requires, variant.runtime
    needs = [
        runtime.name
        + (f" >= {runtime.min_version}" if runtime.min_version else "")
        + (f", < {runtime.below_version}" if runtime.below_version else ""),
        f"{requires.memory_bytes:,} bytes memory",
        f"{requires.storage_bytes:,} bytes storage",
        *requires.arch,
        *requires.cpu_features,
    ]
    quantization = variant.quantization
    lines = [
        f"variant {name}: {variant.plain_size:,} bytes, bundle digest {variant.digest}",
        f"  needs     {', '.join(needs)}",
        f"  weights   {quantization.scheme}, {quantization.stability}, gate {quantization.verdict}",
    ]
    for model in variant.models:
        for side, tensors in (("takes", model.contract.inputs), ("gives", model.contract.outputs)):
            lines += [f"  {side}     {t.name}: {t.dtype} [{', '.join(map(str, t.shape))}]" for t in tensors]
    lines += files_table(variant.files)
    for patch in variant.patches:
        base = f"from {patch.base[:16]}…" if patch.base else "full download"
        lines.append(f"  patch, {base}: {patch.size:,} bytes, {patch.codec}, blob {patch.blob[:16]}…")
    lines += [f"  {key}: {value}" for key, value in variant.provenance]
    return lines


def _inspect_rollout(data: bytes) -> Inspection:
    from bundle.rollout import parse_rollout

    rollout = parse_rollout(data)
    cohorts = ", ".join(rollout.cohorts) or "all cohorts"
    lines = (
        f"rollout of {rollout.family}, channel {rollout.channel}: {rollout.version} (counter {rollout.counter})",
        f"  for       {rollout.percent_bp / 100:g} % of {cohorts}{', HALTED' if rollout.halted else ''}",
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
        f"patch of {path.stat().st_size:,} bytes, {'from ' + base if base else 'full download'}",
        f"  to        {bundle_digest(header.target)}",
        f"  features  {', '.join(header.features) or 'none'}; applying needs "
        f"{header.declared_limits.memory_bound_bytes():,} bytes of memory",
        *(f"  {name:<9} {row['frames']} frames, {row['bytes']:,} bytes" for name, row in operations.items()),
        *files_table(header.target),
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


def _inspect_shard(path: Path) -> Inspection:
    from bundle.envelope_shard import MAX_SHARD_BYTES, decode_shard

    data = read_local_file(path, MAX_SHARD_BYTES)
    envelopes = decode_shard(data)
    sizes = sorted({len(envelope) for envelope in envelopes.values()})
    lines = (f"shard of {len(envelopes)} envelopes of {sizes[0]:,} bytes: {len(data):,} bytes",)
    return Inspection("envelope-shard", {"bytes": len(data), "envelopes": sorted(envelopes)}, lines)


def _inspect_bundle(path: Path) -> Inspection:
    found = open_package(path)
    digest = bundle_digest(found.files)
    plain = sum(file.size for file in found.files)
    shares = shares_of_files(found.files)
    facts: dict[str, object] = {
        "bundle": digest,
        "plain_size": plain,
        "shares": shares.as_json(),
        "files": [f.as_json() for f in found.files],
    }
    lines = [f"bundle of {plain:,} bytes, digest {digest}", f"  {shares.as_text()}", *files_table(found.files)]
    warning = golden_warning(shares.golden, shares.model, None, is_update=False)
    return Inspection("bundle", facts, (*lines, *([] if warning is None else [f"warning: {warning}"])))
