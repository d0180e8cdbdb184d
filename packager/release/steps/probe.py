"""Step probe: let the installed agent open every bundle as a device does, before it is signed.

Rules:
- The agent is a program of its own: the packager runs `device-agent probe-bundle` and reads its JSON. It is the agent
  of this Python installation, else the first one in PATH. Without one, a note says that no agent opened the bundles.
- A variant that devices would refuse is left out with the agent's reason; if it is required, the release fails.
- If the agent cannot judge a bundle (no process, no memory), the release fails: try again.
- A kernel that cannot confine the agent's process is named in a note, because the bundle was then opened unjailed.
- Fire drills are not probed, because devices must refuse them. Bundles without a model have nothing to open.
- The agent's ratio to its reference graph goes into the manifest's measured figures.
"""

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bundle.errors import Unfit
from bundle.probe_request import ProbeRequest
from bundle.variant import ModelEntry
from packager.errors import BundleNotProbed, BundleUnfit
from packager.release.draft import AssembledVariant, DeviceChecks, Draft
from packager.release.steps.sign import model_entries

AGENT_PACKAGE: Final = "device_agent"
AGENT_PROGRAM: Final = "device-agent"
TIMEOUT_MARGIN_S: Final = 120  # beside the probe's own deadlines: the start of Python, and copying the files
MAX_MESSAGE_CHARACTERS: Final = 300
FIRST_LATENCY_PERCENT: Final = 1000  # ten times slower than on the build machine is not a usable model
CONFINING: Final = ("seccomp", "landlock")


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The figures that the agent printed.

    Attributes:
        reference_ratio_ppm: processor time over that of the reference graph, in parts per million, or None.
        missing_restrictions: restrictions of the agent's process that the kernel does not offer, by name.
    """

    reference_ratio_ppm: int | None
    missing_restrictions: tuple[str, ...]


def run(draft: Draft) -> None:
    """Probe the bundles of `assembled`, or drop variants.

    Raises:
        BundleUnfit: devices would refuse a required variant.
        BundleNotProbed: the agent cannot judge a bundle.
    """
    variants = [variant for variant in draft.assembled.values() if variant.checks.contract is not None]
    if draft.plan.drill is not None or not variants:
        return
    agent = find_agent()
    if agent is None:
        draft.note("no device-agent is installed here: no bundle was opened as a device opens it")
        return
    bar = draft.reporter.bar("probe")
    for number, variant in enumerate(variants, start=1):
        try:
            models = model_entries(variant, draft.plan.model_name)
            found = _probe(agent, variant, models, draft.variant_folder(variant.name) / "probe.json")
        except BundleUnfit as error:
            if variant.quantized.plan.required:
                raise
            draft.assembled.pop(variant.name)
            draft.drop_variant(variant.name, error.message)
        else:
            missing = [name for name in CONFINING if name in found.missing_restrictions]
            if missing:
                draft.note(f"the bundles were opened UNJAILED: this kernel does not offer {', '.join(missing)}")
            measured = replace(variant.measured, reference_ratio_ppm=found.reference_ratio_ppm)
            draft.assembled[variant.name] = replace(variant, measured=measured, checks=_with_limit(variant, found))
        bar(number, len(variants))


def _with_limit(variant: AssembledVariant, found: ProbeResult) -> DeviceChecks:
    """Return the checks with a limit for first installs, if there is a ratio to compare with."""
    checks = variant.checks
    if found.reference_ratio_ppm is None or checks.health.first_latency_percent is not None:
        return checks
    return replace(checks, health=replace(checks.health, first_latency_percent=FIRST_LATENCY_PERCENT))


def find_agent() -> tuple[str, ...] | None:
    """Return the command line of the installed agent, or None."""
    if importlib.util.find_spec(AGENT_PACKAGE) is not None:
        return (sys.executable, "-P", "-m", AGENT_PACKAGE)
    program = shutil.which(AGENT_PROGRAM)
    return None if program is None else (program,)


def _probe(
    agent: tuple[str, ...], variant: AssembledVariant, models: tuple[ModelEntry, ...], request: Path
) -> ProbeResult:
    expected = ProbeRequest(variant.bundle.files, models, variant.checks.health, variant.runtime)
    request.write_bytes(expected.as_bytes())
    command = [*agent, "probe-bundle", str(variant.bundle.root), str(request), "--json"]
    timeout_s = 2 * variant.checks.health.probe_deadline_s + TIMEOUT_MARGIN_S
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BundleNotProbed(f"variant {variant.name!r}: the agent took longer than {timeout_s} s") from error
    if done.returncode == 0:
        try:
            found = json.loads(done.stdout)
            return ProbeResult(found["reference_ratio_ppm"], tuple(found["missing_restrictions"]))
        except (ValueError, LookupError, TypeError) as error:
            raise BundleNotProbed(
                f"variant {variant.name!r}: {' '.join(agent)} printed something else than a probe's result",
                hint="install a device-agent of this version",
            ) from error
    reason, message = _error_of(done.stderr)
    if done.returncode == Unfit.exit_code:
        raise BundleUnfit(f"variant {variant.name!r}: devices would refuse it: {reason}: {message}")
    raise BundleNotProbed(f"variant {variant.name!r}: exit code {done.returncode}: {reason}: {message}")


def _error_of(stderr: bytes) -> tuple[str, str]:
    """Return reason and message of the error object that the agent printed, else its last line."""
    lines = stderr.decode(errors="replace").strip().splitlines() or [""]
    try:
        error = json.loads(lines[-1])["error"]
        return str(error["reason"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return "no error object", lines[-1][:MAX_MESSAGE_CHARACTERS]
