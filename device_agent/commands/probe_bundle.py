"""`device-agent probe-bundle`: open a plain bundle as a device would, before it is signed.

The packager runs it for each variant of a release (bundle.probe_request). It needs no configuration and no device
directory, and changes nothing. The steps are those of an update, with the same code:
1. The files become sealed memory files, after their sizes and digests were compared.
2. The probe process enters its jail, opens the model from memory, and runs and compares the golden inputs.
3. The golden inputs are asked as requests, through the endpoint's parser.
4. The model is measured relative to the reference graph, with one thread.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from bundle import console
from device_agent.commands.daemon_or_offline import JSON_OPTION

if TYPE_CHECKING:
    from bundle.files import BundleFile
    from bundle.probe_request import ProbeRequest

CHUNK_BYTES: Final = 1 << 20


@click.command("probe-bundle", short_help="Open a bundle as a device would.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.argument("request", type=click.Path(path_type=Path, dir_okay=False))
@JSON_OPTION
def probe_bundle(folder: Path, request: Path, *, as_json: bool) -> None:
    """Open the plain bundle in FOLDER as a device would.

    The bundle is opened from sealed memory and in the jail, and run again through the request parser.

    REQUEST describes what is expected of it; `packager release` writes it, and runs this command before it signs. No
    configuration is read. If the kernel cannot confine the probe, it runs unjailed, and the result says so.

    Exit status: 0 passed, 2 the files are missing or not the described ones, 4 the probe could not judge it, 5 devices
    would refuse it.
    """
    from bundle.local_files import read_local_file
    from bundle.probe_request import MAX_REQUEST_BYTES, parse_probe_request
    from device_agent.errors import ConfigInvalid, ProbeInconclusive
    from device_agent.process.jail import JailPolicy
    from device_agent.process.worker_process import missing_restrictions
    from device_agent.runtime.bundle_fds import BundleFds
    from device_agent.runtime.probe_runner import run_probe_process
    from device_agent.update.probe_client import probe_error

    try:
        expected = parse_probe_request(read_local_file(request, MAX_REQUEST_BYTES))
    except OSError as error:
        raise ConfigInvalid(f"request {request}: {error.strerror}") from error
    if not expected.models:
        raise ConfigInvalid(f"request {request}: found no model, expected at least one")
    with _memory_files(folder, expected) as fds:
        report = run_probe_process(
            BundleFds.from_models(expected.models, expected.files, fds, expected.runtime),
            [model.contract for model in expected.models],
            expected.health,
            jail=JailPolicy(allow_unjailed=True),
            asks_requests=True,
            measures_ratio=True,
        )
    if report.verdict == "inconclusive":
        raise ProbeInconclusive(f"{report.reason}: {report.detail}")
    if report.verdict != "pass":
        raise probe_error(report)
    missing = dict(missing_restrictions()).get("probe", ())
    result = {
        "samples": report.samples,
        "worst_relative_rms_ppm": report.worst_relative_rms_ppm,
        "latency_us": report.latency_us,
        "load_us": report.load_us,
        "peak_bytes": report.peak_bytes,
        "reference_ratio_ppm": report.reference_ratio_ppm,
        "missing_restrictions": list(missing),
    }
    text = [f"passed: {report.samples} golden inputs, {report.peak_bytes:,} bytes of memory"]
    if missing:
        text.append(f"without these restrictions, which the kernel does not offer: {', '.join(missing)}")
    console.print_result(result, as_json=as_json, text=text)


@contextmanager
def _memory_files(folder: Path, expected: "ProbeRequest") -> Iterator[dict[str, int]]:
    """Yield a sealed memory file for each file of the bundle, by path."""
    fds: dict[str, int] = {}
    try:
        for file in expected.files:
            fds[file.path] = _copy_to_memory(folder / file.path, file)
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def _copy_to_memory(path: Path, file: "BundleFile") -> int:
    import fcntl

    from bundle.local_files import open_local_file
    from device_agent.errors import ConfigInvalid
    from device_agent.runtime.bundle_fds import MEMFD_SEALS

    digest = hashlib.sha256()
    fd = os.memfd_create("probe-bundle", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open_local_file(path) as stream:
            while chunk := stream.read(CHUNK_BYTES):
                digest.update(chunk)
                remaining = memoryview(chunk)
                while remaining:
                    remaining = remaining[os.write(fd, remaining) :]
        if digest.hexdigest() != file.sha256:
            raise ConfigInvalid(f"{path}: found SHA-256 {digest.hexdigest()}, expected {file.sha256}")
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd
