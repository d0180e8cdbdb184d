"""The planner chooses the cheapest path and the variant that the policy allows."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundle.contract import PPM, Contract, Health, TensorSpec
from bundle.cpu_features import CPUINFO_VARIABLE
from bundle.files import BundleDigest, BundleFile
from bundle.manifest import MAX_VARIANTS, Manifest
from bundle.requirements import Requirements, Runtime
from bundle.strict_json import StrictObject
from bundle.variant import Measured, ModelEntry, PatchEntry, Quantization, Variant
from device_agent.errors import MeteredLimitExceeded, NoPatchPath, NoVariant, ProviderMissing, RuntimeMissing
from device_agent.host.device_facts import device_facts
from device_agent.policy.planner import (
    DeviceFacts,
    PatchEdge,
    PathPolicy,
    choose_variant,
    find_cheapest_path,
    patch_edges,
    unmet_requirement,
)
from device_agent.policy.variant_choice import VariantMeasurements
from device_agent.update.preview import Plan, PlannedDevice, PlannedVariant

FACTS = DeviceFacts("x86_64", frozenset({"avx2"}), "1.32.0", 10**9, frozenset({"delta", "typed"}))
POLICY = PathPolicy(max_steps=3)
SPEC = TensorSpec("x", "float32", (1,))


def make_variant(name: str, /, *patches: PatchEntry, **requires: Any) -> Variant:
    files = (BundleFile("model.onnx", "model", 1000, name.encode().hex().ljust(64, "0")),)
    runtime = Runtime(**{key: requires.pop(key) for key in list(requires) if key in Runtime.__dataclass_fields__})
    models = (ModelEntry("model", "model.onnx", None, Contract((SPEC,), (SPEC,))),)
    needs = Requirements(**requires)
    return Variant(runtime, needs, "sealed", files, models, patches, "0" * 64, Health(), Quantization())


def make_patch(base: BundleDigest | None, size: int, *, features: tuple[str, ...] = (), memory: int = 0) -> PatchEntry:
    return PatchEntry(base, "typed", features, f"{size:064x}", size, size, memory)


def make_manifest(version: str, counter: int, **variants: Variant) -> Manifest:
    return Manifest("kws", version, counter, 0, ("stable",), "0.1", "2026-01-01T00:00:00Z", (), tuple(variants.items()))


A, B, C = (make_variant(name).digest for name in "abc")


def make_edges(*patches: tuple[str, PatchEntry]) -> list[PatchEdge]:
    """Return one manifest per target."""
    out = []
    for name in {name for name, _ in patches}:
        entries = [entry for target, entry in patches if target == name]
        out += patch_edges(make_manifest("1.0.0", 1, fp32=make_variant(name, *entries)), 1)
    return out


def plan_sizes(
    known: list[PatchEdge], stored: set[BundleDigest], target: BundleDigest = C, **changes: Any
) -> list[int]:
    spooled = changes.pop("spooled", {})
    plan = find_cheapest_path(target, known, frozenset(stored), spooled, FACTS, replace(POLICY, **changes))
    return [step.entry.size for step in plan.steps]


WAYS = make_edges(
    ("c", make_patch(None, 1000)), ("c", make_patch(B, 100)), ("c", make_patch(A, 300)), ("b", make_patch(A, 150))
)


def test_what_is_held_is_not_fetched() -> None:
    plan = find_cheapest_path(C, WAYS, frozenset({C}), {}, FACTS, POLICY)
    assert (plan.steps, plan.fetch_bytes, plan.storage_bytes) == ((), 0, 0)


def test_the_cheapest_path_wins_whatever_its_length() -> None:
    assert plan_sizes(WAYS, set()) == [1000]
    assert plan_sizes(WAYS, {B}) == [100]
    assert plan_sizes(WAYS, {A}) == [150, 100]
    assert plan_sizes(WAYS, {A}, max_steps=1) == [300]


def test_between_equal_costs_the_shorter_path_wins() -> None:
    assert plan_sizes(
        make_edges(("c", make_patch(A, 250)), ("c", make_patch(B, 100)), ("b", make_patch(A, 150))), {A}
    ) == [250]


def test_what_lies_in_the_spool_counts_as_fetched() -> None:
    assert plan_sizes(WAYS, {A}, spooled={f"{300:064x}": 299}) == [300]


def test_a_plan_says_what_it_takes() -> None:
    plan = find_cheapest_path(C, WAYS, frozenset({A}), {f"{100:064x}": 40}, FACTS, POLICY)
    assert (plan.fetch_bytes, plan.patch_bytes, plan.full_bytes) == (210, 250, 1000)
    assert plan.storage_bytes > plan.fetch_bytes + 2 * 1000


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (make_patch(A, 10, features=("quantum",)), "decoder feature 'quantum'"),
        (make_patch(A, 10, memory=2 * 10**9), "2000000000 bytes of memory"),
        (make_patch(B, 10), "no published patch leads to bundle"),
    ],
)
def test_a_patch_that_this_device_can_not_apply_is_no_path(entry: PatchEntry, words: str) -> None:
    with pytest.raises(NoPatchPath, match=words):
        find_cheapest_path(C, make_edges(("c", entry)), frozenset({A}), {}, FACTS, POLICY)


def test_patches_that_go_in_a_circle_end() -> None:
    with pytest.raises(NoPatchPath):
        plan_sizes(make_edges(("c", make_patch(B, 1)), ("b", make_patch(C, 1))), {A})


def test_a_metered_connection_has_its_limit() -> None:
    with pytest.raises(MeteredLimitExceeded, match="downloads 250 bytes, the metered limit is 249"):
        plan_sizes(WAYS, {A}, metered_limit_bytes=249)
    assert plan_sizes(WAYS, {A}, metered_limit_bytes=250) == [150, 100]


def test_auto_keeps_the_variant_that_runs_and_else_takes_the_smallest_that_fits() -> None:
    big = replace(make_variant("a"), files=(BundleFile("model.onnx", "model", 9000, "1" * 64),))
    release = make_manifest("1.0.0", 1, fp32=big, int8=make_variant("b"), int4=make_variant("c", cpu_features=("amx",)))
    assert choose_variant(release, "auto", FACTS, None)[0] == "int8"
    assert choose_variant(release, "auto", FACTS, "fp32")[0] == "fp32"
    assert choose_variant(release, "auto", FACTS, "int4")[0] == "int8"
    assert choose_variant(release, "fp32", FACTS, "int8")[0] == "fp32"


def make_measured(name: str, size: int, ratio: float | None, memory: int = 0) -> Variant:
    """Return a variant of a size that takes `ratio` times the reference graph's time on the build machine."""
    variant = make_variant(name, memory_bytes=memory)
    measured = Measured(reference_ratio_ppm=None if ratio is None else round(ratio * PPM))
    return replace(variant, files=(BundleFile("model.onnx", "model", size, name * 64),), measured=measured)


MEASURED = make_manifest(
    "1.0.0",
    1,
    fp32=make_measured("a", 12_000, 1.0, memory=300),
    int8=make_measured("b", 3_000, 0.6, memory=400),
    weights=make_measured("c", 4_000, 1.02, memory=350),
)


@pytest.mark.parametrize(
    ("prefer", "factors", "current", "has_changed", "expected"),
    [
        ("latency", {}, None, False, "int8"),  # by the build machine's figures
        ("latency", {"int8": 3 * PPM}, None, False, "weights"),  # slow here; of equally fast ones the smaller
        ("latency", {}, "fp32", False, "int8"),
        ("latency", {}, "fp32", True, "fp32"),  # changed once with these measurements already
        ("latency", {"int8": round(1.5 * PPM)}, "fp32", False, "fp32"),  # 10 % are not worth a change
        ("latency", {"int8": round(1.3 * PPM)}, "fp32", False, "int8"),
        ("latency", {"int8": 3 * PPM}, "int8", False, "weights"),
        ("size", {"int8": 9 * PPM}, None, False, "int8"),
        ("size", {}, "weights", False, "int8"),
        ("memory", {}, None, False, "fp32"),
        ("memory", {}, "weights", False, "weights"),
    ],
)
def test_auto_takes_the_best_by_its_preference_and_changes_for_a_real_gain_only(
    prefer: str, factors: dict[str, int], current: str | None, has_changed: bool, expected: str
) -> None:
    measured = VariantMeasurements(prefer=prefer, factors=factors, has_changed=has_changed)
    assert choose_variant(MEASURED, "auto", FACTS, current, measured)[0] == expected
    assert VariantMeasurements.parse(StrictObject(measured.as_json(), "record")) == measured


def test_without_a_ratio_of_each_variant_the_smallest_is_taken_and_the_active_one_kept() -> None:
    release = make_manifest("1.0.0", 1, fp32=make_measured("a", 12_000, 1.0), int4=make_measured("b", 2_000, None))
    assert choose_variant(release, "auto", FACTS, None)[0] == "int4"
    assert choose_variant(release, "auto", FACTS, "fp32")[0] == "fp32"


def test_without_a_reference_ratio_the_ratio_to_the_float_model_decides() -> None:
    sizes = {"fp32": 90_321_820, "fp16": 45_501_243, "int8": 23_560_481, "int4": 22_741_958}
    ratios = {"fp32": 1.0, "fp16": 0.99, "int8": 2.02, "int4": 3.04}
    variants = {
        name: replace(make_measured("a", size, None), measured=Measured(float_ratio_ppm=round(ratios[name] * PPM)))
        for name, size in sizes.items()
    }
    assert choose_variant(make_manifest("1.0.0", 1, **variants), "auto", FACTS, None)[0] == "fp16"


@pytest.mark.parametrize(
    ("arch", "cpuinfo", "expected"),
    [
        ("x86_64", "flags\t\t: fpu sse4_2", "int8"),
        ("x86_64", "flags\t\t: fpu avx2 avx512f", "int8"),
        ("x86_64", "flags\t\t: fpu avx2 avx512f avx512_vnni", "int8-x86-vnni"),
        ("x86_64", "flags\t\t: fpu avx2 avx_vnni", "int8-x86-vnni"),
        ("x86_64", "processor\t: 0", "int8"),
        ("aarch64", "Features\t: fp asimd", "int8"),
        ("aarch64", "Features\t: fp asimd asimddp", "int8-arm-dotprod"),
    ],
)
def test_a_processor_without_fast_integer_instructions_takes_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, cpuinfo: str, expected: str
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: A Processor\n{cpuinfo}\n")
    monkeypatch.setenv(CPUINFO_VARIABLE, str(tmp_path / "cpuinfo"))
    weights = make_measured("c", 4_000, 1.0)
    vnni, dotprod = make_measured("d", 4_100, 0.5), make_measured("e", 4_100, 0.5)
    release = make_manifest(
        "1.0.0",
        1,
        fp32=make_measured("a", 12_000, 1.0),
        int8=weights,
        **{
            "int8-arm-dotprod": replace(dotprod, requires=Requirements(("aarch64",), ("asimddp",))),
            "int8-x86-vnni": replace(vnni, requires=Requirements(("x86_64",), ("vnni",))),
        },
    )
    facts = replace(FACTS, arch=arch, cpu_features=device_facts().cpu_features)
    assert choose_variant(release, "auto", facts, None)[0] == expected


def test_measurements_belong_to_one_runtime_processor_and_preference() -> None:
    measured = VariantMeasurements("1.32.0", "cpu", "latency").with_factor("int8", 2 * PPM).with_change()
    assert measured.of_device("1.32.0", "cpu", "latency") is measured
    for other in (("1.33.0", "cpu", "latency"), ("1.32.0", "other", "latency"), ("1.32.0", "cpu", "size")):
        forgotten = measured.of_device(*other)
        assert (forgotten.factor("int8"), forgotten.has_changed) == (None, False)


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        ({"arch": ("aarch64",)}, "needs aarch64, this device is x86_64"),
        ({"cpu_features": ("avx2", "vnni")}, "processor features vnni"),
        ({"min_version": "1.33"}, "needs onnxruntime 1.33 or later, this device has 1.32.0"),
        ({"below_version": "1.32"}, "needs onnxruntime below 1.32, this device has 1.32.0"),
        ({"options": (("session.x", "1"),)}, "session option 'session.x', which is none of"),
        ({"memory_bytes": 10**9 + 1}, "1000000001 bytes of memory"),
    ],
)
def test_a_variant_that_does_not_fit_says_why(requires: dict[str, Any], words: str) -> None:
    assert words in unmet_requirement(make_variant("a", **requires), FACTS)
    release = make_manifest("1.0.0", 1, fp32=make_variant("a", **requires))
    for wanted in ("auto", "fp32"):
        with pytest.raises(NoVariant, match=words):
            choose_variant(release, wanted, FACTS, None)


def test_litert_has_neither_providers_nor_session_options() -> None:
    facts = replace(FACTS, other_runtimes={"litert": "2.3.0"})
    for given in ({"providers": ("OpenVINO",)}, {"options": (("denormal_as_zero", "1"),)}):
        variant = make_variant("a", name="litert", min_version="2.1", **given)
        assert "an execution provider or a session option of litert" in unmet_requirement(variant, facts)


CUDA = make_variant("b", providers=("CUDA",))


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ((("CPU", ""),), r"serve.providers does not list \(it has CPU\)"),
        ((("CUDA", "no device"), ("CPU", "")), "which this device lacks: no device"),
    ],
)
def test_a_missing_execution_provider_has_a_reason_of_its_own(listed: tuple[tuple[str, str], ...], words: str) -> None:
    facts = replace(FACTS, providers=listed)
    alone, both = make_manifest("1.0.0", 1, cuda=CUDA), make_manifest("1.0.0", 1, cuda=CUDA, fp32=make_variant("a"))
    for release, wanted in ((alone, "auto"), (alone, "cuda"), (both, "cuda")):
        with pytest.raises(ProviderMissing, match=words) as caught:
            choose_variant(release, wanted, facts, None)
        assert caught.value.hint is not None
    assert choose_variant(both, "auto", facts, "cuda")[0] == "fp32"


def test_a_variant_whose_provider_failed_here_gives_way_to_the_one_for_the_cpu() -> None:
    both, facts = (
        make_manifest("1.0.0", 1, cuda=CUDA, fp32=make_variant("a")),
        replace(FACTS, providers=(("CUDA", ""), ("CPU", ""))),
    )
    failed = frozenset({"cuda"})
    assert choose_variant(both, "auto", facts, None)[0] == "cuda"
    assert choose_variant(both, "auto", facts, "cuda", failed=failed)[0] == "fp32"
    # asked for by name, or without another one: the quarantine refuses it
    assert choose_variant(both, "cuda", facts, None, failed=failed)[0] == "cuda"
    assert choose_variant(make_manifest("1.0.0", 1, cuda=CUDA), "auto", facts, None, failed=failed)[0] == "cuda"


def test_the_first_listed_provider_with_a_variant_is_taken() -> None:
    other, explicit = make_variant("c", providers=("QNN",)), make_variant("d", providers=("CPU",))
    release = make_manifest("1.0.0", 1, cuda=CUDA, qnn=other, fp32=explicit)
    for listed, expected in ((("QNN", "CUDA", "CPU"), "qnn"), (("CPU", "CUDA"), "fp32"), (("CUDA",), "cuda")):
        facts = replace(FACTS, providers=tuple((name, "") for name in listed))
        for current in (None, "fp32", "cuda"):
            assert choose_variant(release, "auto", facts, current)[0] == expected


def test_a_release_for_a_runtime_that_is_not_installed_says_so() -> None:
    litert, onnx = make_variant("a", name="litert", min_version="2.1"), make_variant("b")
    with pytest.raises(RuntimeMissing, match="runtime litert, which is not installed"):
        choose_variant(make_manifest("1.0.0", 1, tflite=litert), "auto", FACTS, None)
    both = make_manifest("1.0.0", 1, tflite=litert, fp32=onnx)
    assert choose_variant(both, "auto", FACTS, None)[0] == "fp32"
    with pytest.raises(RuntimeMissing):
        choose_variant(both, "tflite", FACTS, None)
    installed = replace(FACTS, other_runtimes={"litert": "2.0.9"})
    with pytest.raises(NoVariant, match=r"needs litert 2\.1 or later, this device has 2\.0\.9"):
        choose_variant(both, "tflite", installed, None)
    assert choose_variant(both, "tflite", replace(FACTS, other_runtimes={"litert": "2.3.0"}), None)[0] == "tflite"
    without = replace(FACTS, runtime="0")
    with pytest.raises(RuntimeMissing):
        choose_variant(make_manifest("1.0.0", 1, fp32=onnx), "auto", without, None)


def test_a_plan_with_the_longest_explanations_passes_the_control_socket() -> None:
    features = tuple(f"feature-{number:02}-{'x' * 21}" for number in range(64))
    names = [f"variant-{number:02}-{'x' * 53}" for number in range(MAX_VARIANTS)]
    variants = {name: make_variant(name[:20], cpu_features=features) for name in names}
    with pytest.raises(NoVariant) as caught:
        choose_variant(make_manifest("1.0.0", 1, **variants), "auto", FACTS, None)
    rows = tuple(
        PlannedVariant(name, False, unmet_requirement(variant, FACTS), 1000, 0, variant.digest)
        for name, variant in variants.items()
    )
    device = PlannedDevice("x86_64", "1.32.0", 10**9, ("CPUExecutionProvider",), ())
    plan = Plan("1.0.0", 1, None, device, "auto", None, rows, None, "unfit", caught.value.reason, caught.value.message)
    assert Plan.parse(StrictObject(json.loads(json.dumps(plan.as_json())), "plan")) == plan


def test_runtime_versions_compare_by_number() -> None:
    assert not unmet_requirement(make_variant("a", min_version="1.9"), FACTS)
    assert not unmet_requirement(make_variant("a", min_version="1.32"), FACTS)
    assert not unmet_requirement(make_variant("a", min_version="1.32"), replace(FACTS, runtime="1.32.0rc1"))
