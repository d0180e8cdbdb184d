"""The daemon, as a process: it serves, updates under way, goes back, obeys the control socket, and ends."""

import json

from tests.agent.client import infer
from tests.agent.lab import Device, Publisher


def test_the_daemon_installs_serves_updates_and_goes_back(device: Device, publisher: Publisher) -> None:
    line = device.start()
    assert line["address"] == device.config.serve.listen
    assert device.ask("status")["ready"] is False
    first = device.ask("update")
    assert (first["outcome"], first["release"]) == ("updated", "1.0.0"), first
    assert device.ask("status")["ready"] is True
    assert infer(device)["model_version"] == "1.0.0"

    publisher.offer("1.1.0")
    second = device.ask("update")
    assert (second["outcome"], second["release"]) == ("updated", "1.1.0"), second
    assert 0 < second["download_bytes"] == second["patch_bytes"] < second["full_bytes"]
    assert infer(device)["model_version"] == "1.1.0"
    assert device.ask("update")["outcome"] == "nothing-new"

    back = device.ask("rollback")
    assert (back["outcome"], back["reason"]) == ("rolled-back", "operator-rollback")
    assert infer(device)["model_version"] == "1.0.0"
    again = device.ask("update")
    assert (again["outcome"], again["reason"]) == ("refused", "quarantined")
    assert device.ask("forgive") == {"forgiven": 1}
    assert device.ask("update")["outcome"] == "updated"

    status = json.loads(device.command("status", "--json").stdout)
    assert (status["daemon"], status["active"]["release"], status["previous"]["release"]) == (True, "1.1.0", "1.0.0")
    assert device.stop() == 0
    assert json.loads(device.command("status", "--json").stdout)["daemon"] is False
    assert not device.directory.control.exists()
