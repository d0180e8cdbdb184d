"""Makes what the cases start from: a publisher with two releases, and a device that serves the first of them."""

from pathlib import Path

from tests.support.publisher import DeviceUnderTest, Publisher
from torture.case import NEW, OLD, Site
from torture.in_process import Alone


def make_site(folder: Path, scratch: Path) -> Site:
    """A site below `folder`; copies are made below `scratch`."""
    publisher = Publisher(folder / "site")
    publisher.release(OLD, seed=0)
    publisher.release(NEW, seed=1)
    publisher.offer(OLD)
    device = DeviceUnderTest.make(folder / "lab", f"file://{publisher.published}", publisher.root)
    publisher.admit(device.directory)
    alone = Alone(device.config_path)
    ended = alone.update()
    assert ended.outcome == "updated", ended
    alone.close()
    publisher.offer(NEW)
    scratch.mkdir(parents=True, exist_ok=True)
    return Site(device.folder, scratch)
