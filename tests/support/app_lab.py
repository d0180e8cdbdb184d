"""A publisher of releases without a model that the agent runs, and a device that lends their files."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.support.faulty_http_server import serve_folder
from tests.support.publisher import FAMILY, DeviceUnderTest, Publisher

SETTINGS = """
family = "{family}"
version = "{version}"
channels = ["stable"]
runtime = "{runtime}"
{extra}
[[files]]
path = "words.txt"
role = "labels"
[[files]]
path = "weights.bin"
role = "model"
[variants.all]
[rollout]
percent = 100
"""
WEIGHTS = random.Random(5).randbytes(100_000)


def release(publisher: Publisher, version: str, words: str, runtime: str = "none", extra: str = "") -> None:
    """Publish a release without a model that the agent runs.

    Args:
        publisher: its publisher.
        version: of the release.
        words: content of the file of the role "labels".
        runtime: "none" or "app".
        extra: further lines of the release file.
    """
    changed = bytearray(WEIGHTS)
    changed[1000] ^= len(words) & 0xFF
    (publisher.folder / "weights.bin").write_bytes(changed)
    (publisher.folder / "words.txt").write_text(words)
    text = SETTINGS.format(family=FAMILY, version=version, runtime=runtime, extra=extra)
    (publisher.folder / "release.toml").write_text(text)
    publisher.publish_release_file()


@contextmanager
def app_lab(folder: Path, settings: str = "") -> Iterator[tuple[Publisher, DeviceUnderTest]]:
    """Yield a publisher of 1.0.0 and a device that is not updated yet, with a socket in a folder of its own.

    Args:
        folder: an empty folder.
        settings: further lines of the device's table `[serve]`.
    """
    folder.chmod(0o755)
    publisher = Publisher(folder / "site")
    release(publisher, "1.0.0", "one\ntwo\n")
    with serve_folder(publisher.published) as site:
        device = DeviceUnderTest.create(folder / "lab", site.url, publisher.root, variant="auto")
        (folder / "run").mkdir(mode=0o755)
        device.config = replace(device.config, serve=replace(device.config.serve, apps_socket=folder / "run/apps.sock"))
        text = device.config_path.read_text().replace("window_s = 0", "window_s = 60")
        text = text.replace("[serve]\n", f'[serve]\napps_socket = "{folder}/run/apps.sock"\n{settings}')
        device.config_path.write_text(f'{text}\n[apps.{FAMILY}]\njudges = ["user:root"]\n')
        publisher.enroll(device.directory)
        try:
            yield publisher, device
        finally:
            device.stop()


def socket_path(device: DeviceUnderTest) -> Path:
    """Return the path of the device's socket for applications."""
    assert device.config.serve.apps_socket is not None
    return device.config.serve.apps_socket
