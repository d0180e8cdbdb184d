"""A software TPM 2.0 (swtpm) on a Unix socket."""

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.config.key_storage import TpmSettings
from device_agent.identity.tpm import Tpm

needs_swtpm = pytest.mark.skipif(
    shutil.which("swtpm") is None or importlib.util.find_spec("tpm2_pytss") is None,
    reason="swtpm (Debian: swtpm) or tpm2-pytss (extra tpm, built with Debian's libtss2-dev) is not installed",
)
START_DEADLINE_S = 120.0


@contextmanager
def run_tpm(folder: Path) -> Iterator[str]:
    """Run a TPM with its state in `folder` until the block ends; yield its TCTI. It starts like after power-on."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "s"
    words = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    words += ["--server", f"type=unixio,path={path}", "--ctrl", f"type=unixio,path={path}.ctrl"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_DEADLINE_S
        while not (_listens(path.with_name("s.ctrl")) and _listens(path)):
            assert process.poll() is None, "swtpm exited"
            assert time.monotonic() < until, "swtpm does not listen"
            time.sleep(0.01)
        yield f"swtpm:path={path}"
    finally:
        process.kill()
        process.wait()
        for left in (path, path.with_name("s.ctrl")):
            left.unlink(missing_ok=True)


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
    return True


def extend_pcr(tcti: str, pcr: int) -> None:
    """Extend a PCR, as a boot with other firmware or another kernel does."""
    import tpm2_pytss

    with tpm2_pytss.ESAPI(tcti) as tpm:
        tpm.pcr_event(tpm2_pytss.ESYS_TR(pcr), b"something else was started")


def undefine_counter(tcti: str, nv_index: int) -> None:
    """Remove the NV index of the counter, as a TPM owner can."""
    import tpm2_pytss

    with tpm2_pytss.ESAPI(tcti) as tpm:
        tpm.nv_undefine_space(tpm.tr_from_tpmpublic(nv_index))


def count_transient_handles(tcti: str) -> int:
    """Return the number of objects and sessions that are not flushed."""
    with Tpm(TpmSettings(tcti)) as tpm:
        return tpm.transient_handles()
