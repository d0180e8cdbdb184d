"""Create the site that cases start from: a publisher with two releases, and a device that has the first one."""

from pathlib import Path

from tests.support.publisher import DeviceUnderTest, Publisher
from torture.case import NEW, OLD, Site
from torture.in_process import InProcessAgent


def make_site(folder: Path, scratch: Path) -> Site:
    """Create a site in `folder`; its copies go to `scratch`."""
    publisher = Publisher(folder / "site")
    publisher.release(OLD, seed=0)
    publisher.release(NEW, seed=1)
    publisher.offer(OLD)
    device = DeviceUnderTest.create(folder / "lab", f"file://{publisher.published}", publisher.root)
    publisher.enroll(device.directory)
    agent = InProcessAgent(device.config_path)
    ended = agent.update()
    assert ended.outcome == "updated", ended
    agent.close()
    publisher.offer(NEW)
    scratch.mkdir(parents=True, exist_ok=True)
    return Site(device.folder, scratch)
