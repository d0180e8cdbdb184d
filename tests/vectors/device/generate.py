"""Write the vector of this folder: `python -m tests.vectors.device.generate`. Only a new schema needs a new vector.

- device-schema-4.tar.gz: the device directory of an enrolled device with 1.0.0 active, as an agent with journal
  schema 4 left it: identity (of a test device), trust state, bundle store and journal.
"""

import tarfile
import tempfile
from pathlib import Path

from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import DeviceUnderTest, Publisher

FOLDER = Path(__file__).parent


def main() -> None:
    """Install a release on a new device, and pack its directory."""
    with tempfile.TemporaryDirectory() as folder:
        publisher = Publisher(Path(folder) / "site")
        publisher.release("1.0.0", seed=0)
        publisher.offer("1.0.0")
        with serve_folder(publisher.published) as site:
            device = DeviceUnderTest.create(Path(folder) / "lab", site.url, publisher.root)
            publisher.enroll(device.directory)
            device.start()
            try:
                assert device.call("update")["outcome"] == "updated"
            finally:
                device.stop()
        with tarfile.open(FOLDER / "device-schema-4.tar.gz", "w:gz") as archive:
            archive.add(device.config.directory, "device", filter=_of_nobody)


def _of_nobody(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if Path(member.name).name in ("lock", "control.sock", "apps.sock"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main()
