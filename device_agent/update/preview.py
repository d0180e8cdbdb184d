"""What an update would do here now, and why: every variant of the release with what speaks against it, and the path.

Nothing is fetched but metadata, and nothing is changed beyond what a check remembers.
"""

from typing import Any, Final

from bundle.manifest import Manifest, Variant
from device_agent.errors import MeteredLimitExceeded, NoPatchPath, NoVariant
from device_agent.host.device_facts import providers
from device_agent.policy.planner import DeviceFacts, choose_variant, unmet_requirement
from device_agent.update.context import UpdateContext, find_patch_path

REASON_ACTIVE: Final = "it fits, and it is the one that serves now"
REASON_SMALLEST: Final = "it is the smallest that fits"
REASON_REQUESTED: Final = "the configuration names it, and it fits"


def preview_update(context: UpdateContext) -> dict[str, Any]:
    """The object of `plan --json`. Raises Refused, Unavailable: of the check."""
    with context.open_workers() as errands:
        release = errands.check_channel(context.journal.persistent_state, context.journal.bundles())
    facts, manifest, settings = context.read_facts(), release.manifest, context.config.update
    active = context.journal.bundle(context.journal.pointers.active)
    current = None if active is None else active.variant
    try:
        chosen: str | None = choose_variant(manifest, settings.variant, facts, current)[0]
        reason, detail = "", ""
    except NoVariant as error:
        chosen, reason, detail = None, error.reason, error.message
    rows = [
        _variant_row(name, variant, facts, chosen, current, settings.variant) for name, variant in manifest.variants
    ]
    path: dict[str, Any] | None = None
    if chosen is not None:
        path, reason, detail = _path_row(context, manifest, release.counter_epoch, chosen, facts)
    return {
        "release": manifest.version,
        "counter": manifest.counter,
        "installed": None if active is None else active.version,
        "device": {
            "arch": facts.arch,
            "onnxruntime": facts.runtime,
            "available_memory_bytes": facts.memory_bytes,
            "execution_providers": list(providers()),
            "cpu_features": sorted(facts.cpu_features & _required_cpu_features(manifest.variants)),
        },
        "requested_variant": settings.variant,
        "chosen": chosen,
        "variants": rows,
        "path": path,
        "reason": reason or None,
        "detail": detail or None,
    }


def plan_text(found: dict[str, Any], *, with_reasons: bool) -> str:
    """The same for a person; without reasons, the choice and the path alone."""
    lines = [f"release {found['release']}, installed: {found['installed'] or 'none'}"]
    if with_reasons:
        device = found["device"]
        runtime = f"onnxruntime {device['onnxruntime']} ({', '.join(device['execution_providers'])})"
        free_mib = device["available_memory_bytes"] // 2**20
        lines.append(f"device: {device['arch']}, {runtime}, {free_mib} MiB of memory available")
        for row in found["variants"]:
            mark = "->" if row["name"] == found["chosen"] else "  "
            lines.append(f"{mark} {row['name']}: {row['uncompressed_bytes']} bytes uncompressed; {row['explanation']}")
    else:
        lines.append(f"variant: {found['chosen'] or 'none'}")
    if found["path"] is not None:
        path = found["path"]
        steps = ", ".join(
            f"{step['codec']} from {step['from'][:16] if step['from'] else 'no base'}" for step in path["steps"]
        )
        lines.append(
            f"path: {steps or 'no patch needed'}; download {path['fetch_bytes']} bytes,"
            f" full download {path['full_download_bytes']} bytes"
        )
    if found["reason"]:
        lines.append(f"{found['reason']}: {found['detail']}")
    return "\n".join(lines)


def _variant_row(
    name: str, variant: Variant, facts: DeviceFacts, chosen: str | None, current: str | None, requested: str
) -> dict[str, Any]:
    why = unmet_requirement(variant.requires, facts)
    fits = not why
    if name == chosen:
        why = REASON_REQUESTED if requested != "auto" else REASON_ACTIVE if name == current else REASON_SMALLEST
    elif fits:
        why = f"it fits, {chosen} is preferred"
    return {
        "name": name,
        "is_compatible": fits,
        "explanation": why,
        "uncompressed_bytes": variant.plain_size,
        "memory_bytes": variant.requires.memory_bytes,
        "bundle": variant.digest,
    }


def _path_row(
    context: UpdateContext, manifest: Manifest, counter_epoch: int, chosen: str, facts: DeviceFacts
) -> tuple[dict[str, Any] | None, str, str]:
    try:
        plan = find_patch_path(context, manifest, counter_epoch, dict(manifest.variants)[chosen].digest, facts)
    except (NoPatchPath, MeteredLimitExceeded) as error:
        return None, error.reason, error.message
    steps = [
        {"from": edge.entry.base, "to": edge.target, "codec": edge.entry.codec, "bytes": edge.entry.size}
        for edge in plan.steps
    ]
    path = {
        "steps": steps,
        "fetch_bytes": plan.fetch_bytes,
        "full_download_bytes": plan.full_bytes,
        "storage_bytes": plan.storage_bytes,
    }
    return path, "", ""


def _required_cpu_features(variants: tuple[tuple[str, Variant], ...]) -> frozenset[str]:
    return frozenset(feature for _, variant in variants for feature in variant.requires.cpu_features)
