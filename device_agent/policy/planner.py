"""The plan: the cheapest signed path from what the device holds to the bundle that it should have.

Pure. Rules:
1. Every edge is a patch of a manifest that was verified: of the release at hand, or of one verified before. A path
   starts from a bundle in the store, or from nothing.
2. Cheapest is fewest bytes still to fetch (what lies in the spool counts as fetched); then fewest patches.
3. Policy: at most `max_chain` patches; none that needs a decoder feature or more memory than there is; and where the
   connection is metered, a limit on the bytes.
4. Space is known before a byte is fetched, from signed sizes: all blobs, and every bundle on the path sealed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final

from bundle.files import BundleDigest
from bundle.manifest import Manifest, PatchEntry, Requirements, Variant
from device_agent.errors import MeteredLimitExceeded, NoPatchPath, NoVariant

FRAME_HEADER_BYTES: Final = 44  # of a frame file; bundle.frames, which the supervisor does not load
FRAME_BYTES: Final = 64 * 1024
FRAME_TAG_BYTES: Final = 16
MAX_HEAD_BYTES: Final = 600 * 1024  # the most that the head of a sealed bundle takes: its manifest, escaped


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What this device is and has.

    Attributes:
        arch: `uname -m`.
        cpu_features: flags of /proc/cpuinfo.
        runtime: onnxruntime's version.
        memory_bytes: available.
        decoders: features of patches that the decoder here knows.
    """

    arch: str
    cpu_features: frozenset[str]
    runtime: str
    memory_bytes: int
    decoders: frozenset[str]


@dataclass(frozen=True, slots=True)
class PatchEdge:
    """One patch that may be used: it leads from `entry.base` to `target`, a variant of `manifest`."""

    manifest: Manifest
    counter_epoch: int
    variant_name: str
    target: BundleDigest
    entry: PatchEntry


@dataclass(frozen=True, slots=True)
class PatchPath:
    """What to fetch and apply, in order.

    Attributes:
        steps: empty where the store has the bundle.
        fetch_bytes: still to come over the wire.
        patch_bytes: of the blobs of all steps.
        full_bytes: of the cheapest blob from nothing, 0 where there is none.
        storage_bytes: that the spool and the store take at the most.
    """

    steps: tuple[PatchEdge, ...]
    fetch_bytes: int
    patch_bytes: int
    full_bytes: int
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """Rule 3; None is no limit."""

    max_steps: int
    metered_limit_bytes: int | None = None


def choose_variant(manifest: Manifest, requested: str, facts: DeviceFacts, current: str | None) -> tuple[str, Variant]:
    """The variant for this device.

    Args:
        wanted: a name, or "auto": the one that it has now where that still fits, else the smallest that fits.
        current: name of the active variant.

    Raises:
        NoVariantRefused: none fits; says why for each.
    """
    misfits = {name: unmet_requirement(variant.requires, facts) for name, variant in manifest.variants}
    if requested != "auto":
        variant = manifest.variant(requested)
        if variant is None or misfits[requested]:
            why = misfits.get(requested) or f"the release has {', '.join(misfits)}"
            raise NoVariant(f"release {manifest.version}: variant {requested!r} does not fit: {why}")
        return requested, variant
    fitting = [(name, variant) for name, variant in manifest.variants if not misfits[name]]
    if not fitting:
        reasons = "; ".join(f"{name}: {why}" for name, why in misfits.items())
        raise NoVariant(f"release {manifest.version} has no variant for this device: {reasons}")
    kept = [pair for pair in fitting if pair[0] == current]
    return kept[0] if kept else min(fitting, key=lambda pair: (pair[1].plain_size, pair[0]))


def unmet_requirement(requires: Requirements, facts: DeviceFacts) -> str:
    """Why a device does not meet requirements; "" where it does."""
    if requires.arch and facts.arch not in requires.arch:
        return f"made for {', '.join(requires.arch)}, this is {facts.arch}"
    missing = sorted(set(requires.cpu_features) - facts.cpu_features)
    if missing:
        return f"needs the processor features {', '.join(missing)}"
    if _parse_version(facts.runtime) < _parse_version(requires.onnxruntime_min):
        return f"needs onnxruntime {requires.onnxruntime_min}, this is {facts.runtime}"
    if requires.onnxruntime_below is not None and _parse_version(facts.runtime) >= _parse_version(
        requires.onnxruntime_below
    ):
        return f"needs onnxruntime below {requires.onnxruntime_below}, this is {facts.runtime}"
    if requires.memory_bytes > facts.memory_bytes:
        return f"needs {requires.memory_bytes} bytes of memory, {facts.memory_bytes} are available"
    return ""


def patch_edges(manifest: Manifest, counter_epoch: int) -> list[PatchEdge]:
    """Every patch that a manifest lists."""
    return [
        PatchEdge(manifest, counter_epoch, name, variant.digest, entry)
        for name, variant in manifest.variants
        for entry in variant.patches
    ]


def find_cheapest_path(
    target: BundleDigest,
    edges: Iterable[PatchEdge],
    stored: frozenset[BundleDigest],
    spooled: Mapping[str, int],
    facts: DeviceFacts,
    policy: PathPolicy,
) -> PatchPath:
    """Rules 1 to 4, but for the free space, which the caller compares.

    Args:
        target: bundle digest.
        edges: of all verified manifests.
        held: bundles in the store that are not known to be damaged.
        spooled: blob → bytes already here.

    Raises:
        NoPathUnavailable, MeteredUnavailable.
    """
    if target in stored:
        return PatchPath((), 0, 0, 0, 0)
    usable = [edge for edge in edges if not _unmet_patch_requirement(edge.entry, facts)]
    full = min((e.entry.size for e in usable if e.target == target and e.entry.base is None), default=0)
    path = _cheapest_edges(target, usable, stored, spooled, policy.max_steps)
    if path is None:
        reasons = sorted(
            {_unmet_patch_requirement(edge.entry, facts) for edge in edges if edge.target == target} - {""}
        )
        raise NoPatchPath(
            f"no published patch leads to bundle {target[:16]} from what this device holds"
            + (f" ({'; '.join(reasons)})" if reasons else ""),
            hint="publish a patch from nothing",
        )
    fetch = sum(_remaining_bytes(edge.entry, spooled) for edge in path)
    if policy.metered_limit_bytes is not None and fetch > policy.metered_limit_bytes:
        raise MeteredLimitExceeded(
            f"the cheapest path takes {fetch} bytes, the metered limit is {policy.metered_limit_bytes}",
            hint="wait for a connection that is not metered, or raise update.metered_limit_bytes",
        )
    storage = fetch + sum(_sealed_bytes(edge) for edge in path)
    return PatchPath(path, fetch, sum(edge.entry.size for edge in path), full, storage)


def _cheapest_edges(
    target: BundleDigest,
    edges: list[PatchEdge],
    stored: frozenset[BundleDigest],
    spooled: Mapping[str, int],
    max_chain: int,
) -> tuple[PatchEdge, ...] | None:
    into: dict[BundleDigest, list[PatchEdge]] = {}
    for edge in edges:
        into.setdefault(edge.target, []).append(edge)
    # backwards from the target, so that a bundle that is held ends a path; the number breaks ties between equal costs
    queue: list[tuple[int, int, int, BundleDigest, tuple[PatchEdge, ...]]] = [(0, 0, 0, target, ())]
    number = 0
    seen: set[tuple[BundleDigest, int]] = set()
    best: tuple[int, int, tuple[PatchEdge, ...]] | None = None
    while queue:
        cost, length, _, node, path = heappop(queue)
        if best is not None and (cost, length) >= best[:2]:
            break
        if (node, length) in seen or length >= max_chain:
            continue
        seen.add((node, length))
        for edge in into.get(node, []):
            after = (cost + _remaining_bytes(edge.entry, spooled), length + 1, (edge, *path))
            if edge.entry.base is None or edge.entry.base in stored:
                best = after if best is None or after[:2] < best[:2] else best
            else:
                number += 1
                heappush(queue, (after[0], after[1], number, edge.entry.base, after[2]))
    return None if best is None else best[2]


def _remaining_bytes(entry: PatchEntry, spooled: Mapping[str, int]) -> int:
    return max(0, entry.size - spooled.get(entry.blob, 0))


def _unmet_patch_requirement(entry: PatchEntry, facts: DeviceFacts) -> str:
    missing = sorted(set(entry.features) - facts.decoders)
    if missing:
        return f"a patch needs the decoder feature {missing[0]!r}"
    if entry.peak_memory > facts.memory_bytes:
        return f"a patch needs {entry.peak_memory} bytes of memory"
    return ""


def _sealed_bytes(edge: PatchEdge) -> int:
    variant = edge.manifest.variant(edge.variant_name)
    plain = MAX_HEAD_BYTES + (0 if variant is None else variant.plain_size)
    return FRAME_HEADER_BYTES + plain + -(-plain // FRAME_BYTES) * FRAME_TAG_BYTES


def _parse_version(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        parts.append(int(digits) if digits else 0)
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
