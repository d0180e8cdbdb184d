"""The variant for this device, and the cheapest patch path from the stored bundles to it.

Theory of operation:

    Bundles are the nodes of a graph. A patch is an edge from its base bundle to its target bundle; a full download is
    an edge without a base. A path is a sequence of edges whose first base is in the store (or that starts with a full
    download) and whose last target is the wanted bundle. Dijkstra's algorithm searches backwards from the target.

Rules:
- Every edge comes from a verified manifest: that of the release, or of one verified before.
- The cheapest path has the fewest bytes to download; what the spool already contains is free. Among equals, the one
  with the fewest patches wins.
- A path has at most `max_steps` patches, and none that needs an unknown decoder feature or more memory than available.
  On a metered connection its download has a limit.
- The needed disk space is known before the download, from signed sizes: all blobs, and all bundles on the path sealed.

This module does no I/O.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Final

from bundle.files import BundleDigest
from bundle.manifest import Manifest
from bundle.providers import CPU
from bundle.requirements import Runtime
from bundle.variant import PatchEntry, Variant
from bundle.version import parse_dotted_version
from device_agent.errors import (
    MeteredLimitExceeded,
    NoPatchPath,
    NoVariant,
    PlainNotAllowed,
    ProviderMissing,
    RuntimeMissing,
)
from device_agent.policy.variant_choice import NO_MEASUREMENTS, VariantMeasurements, prefer_variant

FRAME_HEADER_BYTES: Final = (
    44  # bytes of a frame file's header, as in bundle.frames, which the supervisor does not load
)
FRAME_BYTES: Final = 64 * 1024
FRAME_TAG_BYTES: Final = 16
DEFAULT_RUNTIME: Final = "onnxruntime"
MISSING_VERSION: Final = "0"
MAX_HEAD_BYTES: Final = 600 * 1024  # largest head of a sealed bundle: its manifest as an escaped JSON string


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """The facts of a device that decide about variants and patches.

    Attributes:
        arch: machine name, as `uname -m` prints it.
        cpu_features: flags of /proc/cpuinfo.
        runtime: version of onnxruntime; "0" if it is not installed.
        memory_bytes: available memory.
        decoders: patch features that the installed decoder supports.
        other_runtimes: version of each other installed runtime, by its name in manifests.
        cpu: model name of the processor.
        allows_plain: whether the owner allows plain files in the bundle store.
        providers: the execution providers that the owner lists, the preferred one first, each with what keeps it from
            running here, or "".
    """

    arch: str
    cpu_features: frozenset[str]
    runtime: str
    memory_bytes: int
    decoders: frozenset[str]
    other_runtimes: Mapping[str, str] = field(default_factory=dict)
    cpu: str = ""
    allows_plain: bool = False
    providers: tuple[tuple[str, str], ...] = ((CPU, ""),)

    def provider_rank(self, name: str) -> int:
        """Return the place of a provider in the owner's list; it is listed."""
        return [listed for listed, _ in self.providers].index(name)

    def provider_problem(self, name: str) -> str:
        """Return why models cannot run on a provider here, as a phrase, or ""."""
        if name not in dict(self.providers):
            listed = ", ".join(listed for listed, _ in self.providers)
            return f"the execution provider {name}, which serve.providers does not list (it has {listed})"
        problem = dict(self.providers)[name]
        return f"the execution provider {name}, which this device lacks: {problem}" if problem else ""

    def runtime_version(self, name: str) -> str | None:
        """Return the version of a runtime, or None if it is not installed."""
        if name == DEFAULT_RUNTIME:
            return None if self.runtime == MISSING_VERSION else self.runtime
        return self.other_runtimes.get(name)


@dataclass(frozen=True, slots=True)
class PatchEdge:
    """One patch, from the bundle `entry.base` to the bundle `target`.

    Attributes:
        manifest: verified manifest that lists the patch.
        counter_epoch: epoch of the delegation that signed the manifest's counter.
        variant_name: variant that the patch creates.
        target: digest of that variant's bundle.
        entry: the manifest's entry of the patch; a base of None is a full download.
    """

    manifest: Manifest
    counter_epoch: int
    variant_name: str
    target: BundleDigest
    entry: PatchEntry


@dataclass(frozen=True, slots=True)
class PatchPath:
    """The patches to download and apply.

    Attributes:
        steps: patches in order; empty if the bundle is in the store.
        fetch_bytes: bytes that have to be downloaded.
        patch_bytes: size of the blobs of all steps.
        full_bytes: size of the cheapest full download; 0 if none is published.
        storage_bytes: largest number of bytes that spool and store need for this path.
    """

    steps: tuple[PatchEdge, ...]
    fetch_bytes: int
    patch_bytes: int
    full_bytes: int
    storage_bytes: int


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """The limits of a path.

    Attributes:
        max_steps: maximum number of patches.
        metered_limit_bytes: maximum download, or None for no limit.
    """

    max_steps: int
    metered_limit_bytes: int | None = None


def choose_variant(
    manifest: Manifest,
    requested: str,
    facts: DeviceFacts,
    current: str | None,
    measured: VariantMeasurements = NO_MEASUREMENTS,
    failed: frozenset[str] = frozenset(),
) -> tuple[str, Variant]:
    """Choose the variant for this device, and return its name and the variant.

    Args:
        manifest: verified manifest of the release.
        requested: name of a variant, or "auto" for the preferred one that fits (device_agent.policy.variant_choice).
        facts: processor, memory, runtime and decoders of the device.
        current: name of the active variant, or None.
        measured: measurements and preference of this device.
        failed: names of variants for another provider than the CPU that failed here before; "auto" takes one of them
            only if no other variant fits.

    Raises:
        NoVariant: no variant fits, or the requested one does not; the message says why.
        RuntimeMissing: every variant that could be chosen is for a runtime that is not installed.
        ProviderMissing: every variant that could be chosen is for an execution provider that this device lacks, or that
            the owner does not list.
        PlainNotAllowed: every variant that fits is to be stored as plain files, which the owner does not allow.
    """
    _require_runtime(manifest, requested, facts)
    _require_provider(manifest, requested, facts)
    _require_consent(manifest, requested, facts)
    misfits = {name: unmet_requirement(variant, facts) for name, variant in manifest.variants}
    if requested != "auto":
        variant = manifest.variant(requested)
        if variant is None or misfits[requested]:
            reason = misfits.get(requested) or f"the release has {', '.join(misfits)}"
            raise NoVariant(f"release {manifest.version}: variant {requested!r} does not fit: {reason}")
        return requested, variant
    fitting = [(name, variant) for name, variant in manifest.variants if not misfits[name]]
    if not fitting:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in misfits.items())
        raise NoVariant(f"release {manifest.version} has no variant for this device: {reasons}")
    fitting = [pair for pair in fitting if pair[0] not in failed] or fitting
    first = min(_provider_rank(variant, facts) for _, variant in fitting)
    preferred = [(name, variant) for name, variant in fitting if _provider_rank(variant, facts) == first]
    return prefer_variant(preferred, current, measured)


def _provider_rank(variant: Variant, facts: DeviceFacts) -> int:
    return facts.provider_rank(variant.runtime.provider) if variant.runtime.is_run_by_agent else 0


def _require_runtime(manifest: Manifest, requested: str, facts: DeviceFacts) -> None:
    names = {
        variant.runtime.name
        for name, variant in manifest.variants
        if requested in ("auto", name) and variant.runtime.is_run_by_agent
    }
    has_files_only = any(not variant.runtime.is_run_by_agent for _, variant in manifest.variants)
    if names and not has_files_only and all(facts.runtime_version(name) is None for name in names):
        raise RuntimeMissing(
            f"release {manifest.version} is for the runtime {' or '.join(sorted(names))}, which is not installed here",
            hint="install it beside the agent, or publish a variant for another runtime",
        )


def _require_provider(manifest: Manifest, requested: str, facts: DeviceFacts) -> None:
    found = [variant.runtime for name, variant in manifest.variants if requested in ("auto", name)]
    problems = [facts.provider_problem(runtime.provider) if runtime.is_run_by_agent else "" for runtime in found]
    if found and all(problems):
        raise ProviderMissing(
            f"release {manifest.version} needs {problems[0]}",
            hint="list it in serve.providers if the device has it, or publish a variant for the CPU",
        )


def _require_consent(manifest: Manifest, requested: str, facts: DeviceFacts) -> None:
    others = replace(facts, allows_plain=True)
    fitting = [
        variant
        for name, variant in manifest.variants
        if requested in ("auto", name) and not unmet_requirement(variant, others)
    ]
    if fitting and not facts.allows_plain and all(variant.at_rest == "plain" for variant in fitting):
        raise PlainNotAllowed(
            f"release {manifest.version} is to be stored plain, which apps.{manifest.family}.allow_plain forbids",
            hint='set that key to true on the device, or publish with at_rest = "sealed"',
        )


def unmet_requirement(variant: Variant, facts: DeviceFacts) -> str:
    """Return the first requirement that a device does not meet, as a phrase, or "".

    Args:
        variant: a variant of a verified release.
        facts: processor, memory, runtime and decoders of the device.
    """
    requires = variant.requires
    if requires.arch and facts.arch not in requires.arch:
        return f"needs {' or '.join(requires.arch)}, this device is {facts.arch}"
    missing = sorted(set(requires.cpu_features) - facts.cpu_features)
    if missing:
        return f"needs the processor features {', '.join(missing)}"
    if misfit := _unmet_runtime(variant.runtime, facts):
        return misfit
    if requires.memory_bytes > facts.memory_bytes:
        return f"needs {requires.memory_bytes} bytes of memory, {facts.memory_bytes} are available"
    if variant.at_rest == "plain" and not facts.allows_plain:
        return "needs plain files, which the owner of this device does not allow"
    return ""


def _unmet_runtime(runtime: Runtime, facts: DeviceFacts) -> str:
    if not runtime.is_run_by_agent:
        return ""
    installed = facts.runtime_version(runtime.name)
    if installed is None:
        return f"needs the runtime {runtime.name}, which is not installed"
    found = parse_dotted_version(installed)
    if runtime.min_version is not None and found < parse_dotted_version(runtime.min_version):
        return f"needs {runtime.name} {runtime.min_version} or later, this device has {installed}"
    if runtime.below_version is not None and found >= parse_dotted_version(runtime.below_version):
        return f"needs {runtime.name} below {runtime.below_version}, this device has {installed}"
    if runtime.name != DEFAULT_RUNTIME and (runtime.providers or runtime.options):
        return f"needs an execution provider or a session option of {runtime.name}, which has none"
    if problem := facts.provider_problem(runtime.provider):
        return f"needs {problem}"
    if runtime.options:
        from bundle.session_options import unknown_option  # not in memory at rest

        if problem := unknown_option(runtime.provider, runtime.options):
            return f"needs {problem}"
    return ""


def patch_edges(manifest: Manifest, counter_epoch: int) -> list[PatchEdge]:
    """Return an edge for every patch that a manifest lists.

    Args:
        manifest: a verified manifest.
        counter_epoch: epoch of the delegation that signed its counter.
    """
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
    """Find the cheapest path to a bundle. The caller compares `storage_bytes` with the free space.

    Args:
        target: digest of the wanted bundle.
        edges: patches of all verified manifests.
        stored: bundles in the store that are not known to be damaged.
        spooled: bytes in the spool, by SHA-256 of the blob.
        facts: processor, memory, runtime and decoders of the device.
        policy: limits of the path.

    Raises:
        NoPatchPath: no path within the limits leads to the bundle.
        MeteredLimitExceeded: the cheapest path has to download more than the metered limit.
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
            f"no published patch leads to bundle {target[:16]} from the bundles in the store"
            + (f" ({'; '.join(reasons)})" if reasons else ""),
            hint="publish a full download of the release",
        )
    fetch = sum(_remaining_bytes(edge.entry, spooled) for edge in path)
    if policy.metered_limit_bytes is not None and fetch > policy.metered_limit_bytes:
        raise MeteredLimitExceeded(
            f"the cheapest path downloads {fetch} bytes, the metered limit is {policy.metered_limit_bytes}",
            hint="wait for an unmetered connection, or raise update.metered_limit_bytes",
        )
    storage = fetch + sum(_sealed_bytes(edge) for edge in path)
    return PatchPath(path, fetch, sum(edge.entry.size for edge in path), full, storage)


def _cheapest_edges(
    target: BundleDigest,
    edges: list[PatchEdge],
    stored: frozenset[BundleDigest],
    spooled: Mapping[str, int],
    max_steps: int,
) -> tuple[PatchEdge, ...] | None:
    into: dict[BundleDigest, list[PatchEdge]] = {}
    for edge in edges:
        into.setdefault(edge.target, []).append(edge)
    # cost, length, number, bundle, path from it to the target; the number breaks ties between equal costs
    queue: list[tuple[int, int, int, BundleDigest, tuple[PatchEdge, ...]]] = [(0, 0, 0, target, ())]
    number = 0
    seen: set[tuple[BundleDigest, int]] = set()
    best: tuple[int, int, tuple[PatchEdge, ...]] | None = None
    while queue:
        cost, length, _, node, path = heappop(queue)
        if best is not None and (cost, length) >= best[:2]:
            break
        if (node, length) in seen or length >= max_steps:
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
