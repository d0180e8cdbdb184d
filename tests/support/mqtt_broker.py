"""Debian's Mosquitto on a free port of loopback."""

import contextlib
import getpass
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.certificates import Certificates
from tests.support.free_ports import free_port


def find_broker() -> str | None:
    """Return the path of the broker's program, or None."""
    return shutil.which("mosquitto") or shutil.which("/usr/sbin/mosquitto")


@contextlib.contextmanager
def run_broker(
    folder: Path, certificates: Certificates | None = None, logins: Sequence[str] = (), rules: Sequence[str] = ()
) -> Iterator[int]:
    """Run a broker, and yield its port.

    Args:
        folder: gets its files.
        certificates: speak TLS with the server's certificate of these.
        logins: `USER:PASSWORD` of those who may connect; everybody, if there are none.
        rules: lines of its access list; everything is allowed, if there are none.
    """
    port = free_port()
    lines = [f"user {getpass.getuser()}", f"listener {port} 127.0.0.1"]
    if certificates is not None:
        lines += [f"certfile {certificates.server}", f"keyfile {certificates.server_key}"]
    lines.append(f"allow_anonymous {'false' if logins else 'true'}")
    if logins:
        passwords = folder / "passwords"
        passwords.write_text("".join(f"{login}\n" for login in logins))
        passwords.chmod(0o600)
        subprocess.run(["mosquitto_passwd", "-U", str(passwords)], check=True, capture_output=True)
        lines.append(f"password_file {passwords}")
    if rules:
        access = folder / "access"
        access.write_text("".join(f"{rule}\n" for rule in rules))
        access.chmod(0o600)
        lines.append(f"acl_file {access}")
    settings = folder / "mosquitto.conf"
    settings.write_text("\n".join(lines) + "\n")
    command = [str(find_broker()), "-c", str(settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not _is_open(port):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
