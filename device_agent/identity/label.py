"""The label of a device, a name for people: its form and its default.

Rules:
- The registry accepts a label for one device only. Devices made from one image have one host name, so the default label
  contains the start of the device id.
- A label can be changed until the device is enrolled (device_agent.identity.provision.relabel_device).
"""

import os
import re
from typing import Final

from bundle.strict_json import NAME_PATTERN, describe_pattern
from device_agent.errors import ConfigInvalid

ID_DIGITS: Final = 12  # 48 bits: among a million devices, two have the same with a probability of 0.2 %
MAX_LABEL_CHARACTERS: Final = 64  # NAME_PATTERN
# names that images are shipped with, which say nothing about the device
GENERIC_HOST_NAMES: Final = frozenset(
    {
        *("alarm", "alpine", "archlinux", "armbian", "beaglebone", "buildroot", "container", "debian", "device"),
        *("docker", "fedora", "host", "jetson", "linux", "localhost", "none", "nvidia", "odroid", "openwrt"),
        *("orangepi", "pi", "raspberry", "raspberrypi", "rock", "root", "ubuntu", "unknown", "yocto"),
    }
)
CONTAINER_ID_PATTERN: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}")


def default_label(device_id: str, host_name: str | None = None) -> str:
    """Return the label of a device that was given none: its host name and the start of its id.

    A host name that many devices have, such as raspberrypi or a container id, is replaced with "device".

    Args:
        device_id: the device's id, 64 hexadecimal digits.
        host_name: name of the host; None to read it from the system.
    """
    name = os.uname().nodename if host_name is None else host_name
    plain = re.sub(r"[^a-z0-9-]+", "-", name.partition(".")[0].lower()).strip("-")
    is_generic = plain in GENERIC_HOST_NAMES or CONTAINER_ID_PATTERN.fullmatch(plain) is not None
    prefix = "" if is_generic else plain[: MAX_LABEL_CHARACTERS - ID_DIGITS - 1].strip("-")
    return f"{prefix or 'device'}-{device_id[:ID_DIGITS]}"


def check_label(label: str) -> None:
    """Check that a label is a plain name.

    Raises:
        ConfigInvalid: it is not.
    """
    if not NAME_PATTERN.fullmatch(label):
        raise ConfigInvalid(f"label {label!r}: expected {describe_pattern(NAME_PATTERN)}")
