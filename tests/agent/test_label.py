"""The label of a device: unique by default, and changed before enrollment only."""

import json
from pathlib import Path

import pytest

from bundle.enrollment import parse_enrollment
from device_agent.commands import root
from device_agent.errors import AlreadyEnrolled, ConfigInvalid, DeviceLocked
from device_agent.identity.device_keys import create_enrollment_request, create_identity
from device_agent.identity.label import GENERIC_HOST_NAMES, default_label
from device_agent.identity.provision import relabel_device
from device_agent.storage.device_directory import DeviceDirectory
from tests.support.json_schemas import check_schema
from tests.support.publisher import DeviceUnderTest, Publisher

DEVICE_ID = "0123456789ab" + "c" * 52


@pytest.mark.parametrize(
    ("host_name", "label"),
    [
        ("kitchen", "kitchen-0123456789ab"),
        ("Kitchen_2.example.com", "kitchen-2-0123456789ab"),
        ("f" * 11, "f" * 11 + "-0123456789ab"),
        ("x" * 64, "x" * 51 + "-0123456789ab"),
        *((name, "device-0123456789ab") for name in sorted(GENERIC_HOST_NAMES)),
        *((name, "device-0123456789ab") for name in ("localhost.localdomain", "RaspberryPi", "4f2c91aa03de", "f" * 64)),
        *((name, "device-0123456789ab") for name in ("", "-", "...", "(none)", "日本")),
    ],
)
def test_the_default_label_has_a_telling_host_name_and_the_start_of_the_id(host_name: str, label: str) -> None:
    assert default_label(DEVICE_ID, host_name) == label


def test_devices_with_one_host_name_have_different_default_labels(tmp_path: Path) -> None:
    labels = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        public = create_identity(DeviceDirectory(tmp_path / name))
        assert public.label.endswith(public.device_id[:12])
        labels.add(public.label)
    assert len(labels) == 2


def test_a_new_label_keeps_the_keys_and_is_in_the_next_request(
    publisher: Publisher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    device = DeviceUnderTest.create(tmp_path, "http://127.0.0.1:9", publisher.root)
    old = device.directory.read_public_identity()
    words = ["--config", str(device.config_path), "relabel"]
    assert root.main([*words, "kitchen", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    check_schema("agent-relabel", found)
    assert found == {"device_id": old.device_id, "label": "kitchen"}
    request = parse_enrollment(create_enrollment_request(device.directory)[1])
    assert (request.label, request.device_id) == ("kitchen", old.device_id)
    for label in ("", "Kitchen", "a b", "../a", "x" * 65):
        assert root.main([*words, "--json", "--", label]) == ConfigInvalid.exit_code
        assert json.loads(capsys.readouterr().err)["error"]["reason"] == "config-invalid"
    with device.directory.acquire_lock(), pytest.raises(DeviceLocked):
        relabel_device(device.config, "cellar")
    assert device.directory.read_public_identity().label == "kitchen"


def test_an_enrolled_device_keeps_its_label(installed: DeviceUnderTest) -> None:
    label = installed.directory.read_public_identity().label
    with pytest.raises(AlreadyEnrolled, match=f"device '{label}' has releases of family") as refused:
        relabel_device(installed.config, "cellar")
    assert "device-agent init" in str(refused.value.hint)
    assert relabel_device(installed.config, label).label == label  # nothing to change
    assert installed.directory.read_public_identity().label == label
