"""Lines from a broker count once, wait while the collector or the store is away, and are not believed."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select

from bundle.errors import AirweightsError, InvalidUsage
from fleet.errors import BrokerUnavailable
from fleet.line import MAX_BATCH_LINES
from fleet.mqtt import TOPIC, MqttCollector
from fleet.tables import REPORT, VITAL
from tests.support.fleet_devices import SigningDevice, open_store
from tests.support.mqtt_broker import find_broker, run_broker

pytestmark = pytest.mark.skipif(find_broker() is None, reason="Mosquitto is not installed (Debian: mosquitto)")


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with run_broker(tmp_path_factory.mktemp("broker")) as port:
        yield port


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def publish(port: int, *payloads: bytes) -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    client = Client(CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1", port)
    client.loop_start()
    for payload in payloads:
        client.publish(TOPIC, payload, qos=1).wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


def test_lines_from_a_broker_count_once_and_wait_while_the_collector_is_away(broker: int, tmp_path: Path) -> None:
    device, stranger = SigningDevice("lamp"), SigningDevice("stranger")
    store = open_store(tmp_path, [device])

    def stored() -> int:
        with store.read() as connection:
            return sum(len(connection.execute(select(table.c.digest)).all()) for table in (REPORT, VITAL))

    collector = MqttCollector(store, f"mqtt://127.0.0.1:{broker}")
    collector.start()
    first, second = device.report(), device.report(release="1.1.0", counter=2)
    publish(broker, first, first, stranger.report(), b"nonsense", second)
    wait_until(lambda: stored() == 2)
    collector.stop()
    publish(broker, device.report(release="1.2.0", counter=3), device.vital())
    again = MqttCollector(store, f"mqtt://127.0.0.1:{broker}")
    again.start()
    wait_until(lambda: stored() == 4)
    again.stop()


def test_a_broker_that_is_away_or_a_wrong_url_is_one_line(tmp_path: Path) -> None:
    store = open_store(tmp_path, [])
    with pytest.raises(BrokerUnavailable, match="refused"):
        MqttCollector(store, "mqtt://127.0.0.1:9").start()
    wrong = ("http://127.0.0.1", "mqtt://", "mqtts://user:secret@host", "nonsense", "mqtt://host:99999", "mqtt://[::1")
    for url in (*wrong, "mqtt://:secret@host", "mqtt://user:secret@host:x"):
        with pytest.raises(InvalidUsage, match="expected mqtt://HOST:PORT") as refused:
            MqttCollector(store, url).start()
        assert "secret" not in refused.value.message


def test_every_line_of_a_long_message_is_stored(broker: int, tmp_path: Path) -> None:
    device = SigningDevice("talkative")
    store = open_store(tmp_path, [device])
    collector = MqttCollector(store, f"mqtt://127.0.0.1:{broker}")
    collector.start()
    last = device.report()
    publish(broker, b"nonsense\n" * MAX_BATCH_LINES + last)

    def is_stored() -> bool:
        with store.read() as connection:
            return len(connection.execute(select(REPORT.c.digest)).all()) == 1

    wait_until(is_stored)
    collector.stop()


def test_the_password_is_read_from_a_regular_file_of_one_line(broker: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "binary").write_bytes(b"\xff:secret")
    (tmp_path / "user").write_text("user")
    for name, words in (("fifo", "FIFO"), ("binary", "UTF-8"), ("user", "USER:PASSWORD")):
        collector = MqttCollector(open_store(tmp_path, []), f"mqtt://127.0.0.1:{broker}", None, tmp_path / name)
        with pytest.raises(AirweightsError, match=words):
            collector.start()
    with pytest.raises(AirweightsError, match="FIFO"):
        MqttCollector(open_store(tmp_path, []), f"mqtts://127.0.0.1:{broker}", tmp_path / "fifo").start()
