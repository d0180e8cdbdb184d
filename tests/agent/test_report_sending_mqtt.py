"""A device sends reports and vitals through an MQTT broker; only the collector's answer takes them off its list."""

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bundle.errors import DownloadFailed, TooLarge
from device_agent.config import reports
from device_agent.config.config import load_config
from device_agent.errors import CollectorSilent, MqttMissing, RepositoryAuthRequired, TlsFailed
from device_agent.workers import mqtt_sender
from device_agent.workers.http_client import ClientSettings, HttpClient
from device_agent.workers.mqtt_sender import ANSWERS_TOPIC, LINES_TOPIC, MqttSender
from device_agent.workers.repository_credentials import RepositoryCredentials, SystemAuthorities, no_credentials
from fleet.database import Database
from fleet.device_index import fill_devices
from fleet.mqtt import MqttCollector
from fleet.queries import find_device
from tests.support.certificates import Certificates, create_certificates
from tests.support.connect_proxy import start_connect_proxy
from tests.support.mqtt_broker import find_broker, run_broker
from tests.support.publisher import DeviceUnderTest, Publisher

pytestmark = pytest.mark.skipif(find_broker() is None, reason="Mosquitto is not installed (Debian: mosquitto)")

DEVICE = "ab" * 32
RULES = (
    *("user collector", "topic read airweights/lines", "topic write airweights/answers/#"),
    *("user sensor", "topic write airweights/lines"),
    "pattern read airweights/answers/%c",  # %c is the client identifier, the device's id
)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return create_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[int]:
    """A broker with TLS, logins and an access list."""
    logins = ("collector:listens", "sensor:secret")
    with run_broker(tmp_path_factory.mktemp("guarded"), certificates, logins, RULES) as port:
        yield port


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with run_broker(tmp_path_factory.mktemp("broker")) as port:
        yield port


def test_lines_go_from_a_device_to_the_store_and_are_sent_once(
    first_publisher: Publisher, first_device: DeviceUnderTest, guarded: int, certificates: Certificates, tmp_path: Path
) -> None:
    repository = first_publisher.repository
    database = Database(f"sqlite:{tmp_path / 'fleet.db'}", repository.repository_id)
    fill_devices(database, repository.registry_path, repository.fleet().registry_digest)
    for name, login in (("collector", "collector:listens"), ("sensor", "sensor:secret")):
        (tmp_path / name).write_text(login)
    url = f"mqtts://localhost:{guarded}"
    collector = MqttCollector(database, url, certificates.ca, tmp_path / "collector")
    collector.start()
    try:
        device = first_device.copy(tmp_path / "lab", "http://127.0.0.1:9")
        device.write_config()
        with device.config_path.open("a") as file:
            file.write(f'\n[repository]\nca_file = "{certificates.ca}"\nbasic_auth_file = "{tmp_path / "sensor"}"\n')
            file.write(f'send_credentials_to = ["{url}"]\n[reports]\nurl = "{url}"\n')
        sent = device.command("report", "send", "--json")
        assert (sent.returncode, sent.stderr) == (0, "")
        assert json.loads(sent.stdout) == {"lines": 2}
        assert json.loads(device.command("report", "show", "--json").stdout)["lines"] == []
    finally:
        collector.stop()
    found = find_device(database, device.directory.read_public_identity().device_id)
    assert found is not None
    at = found.standings["kws"].position
    assert (at.release, at.state, at.outcome) == ("1.0.0", "serving", "updated")
    database.close()


class Listener:
    """A client of the broker that does as a test wants when lines arrive."""

    def __init__(self, port: int, on_lines: Callable[[Client, bytes], None]) -> None:
        self.received: list[bytes] = []
        self._is_ready = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.on_subscribe = lambda *_: self._is_ready.set()

        def take(client: Client, _data: Any, message: MQTTMessage) -> None:
            self.received.append(bytes(message.payload))
            on_lines(client, bytes(message.payload))

        self._client.on_message = take
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        self._client.subscribe(LINES_TOPIC, qos=1)
        assert self._is_ready.wait(30)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def answer_to(lines: bytes, **more: Any) -> bytes:
    return json.dumps({"lines_sha256": hashlib.sha256(lines).hexdigest(), "logs": {}, **more}).encode()


def sender(
    port: int, credentials: RepositoryCredentials | None = None, *, scheme: str = "mqtt", **settings: Any
) -> Any:
    found = credentials or no_credentials(SystemAuthorities())
    return MqttSender(HttpClient(ClientSettings(found, **settings)), f"{scheme}://localhost:{port}", DEVICE)


def test_only_the_answer_to_these_lines_counts(broker: int) -> None:
    def respond(client: Client, lines: bytes) -> None:
        client.publish(f"{ANSWERS_TOPIC}/{'cd' * 32}", b"another device's")
        client.publish(f"{ANSWERS_TOPIC}/{DEVICE}", answer_to(b"earlier lines"))
        client.publish(f"{ANSWERS_TOPIC}/{DEVICE}", answer_to(lines))

    with Listener(broker, respond):
        assert sender(broker).send(b"lines\n", 1_000) == answer_to(b"lines\n")


def test_a_broker_without_a_collector_leaves_the_lines_unsent(broker: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_sender, "ANSWER_S", 0.5)
    with pytest.raises(CollectorSilent, match="no answer of a collector"):
        sender(broker).send(b"lines\n", 1_000)


def test_a_message_that_is_no_answer_blocks_nothing_and_a_long_one_is_refused(
    broker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def respond(client: Client, lines: bytes) -> None:
        for payload in (b"nonsense", b"[1]", b" " * 2_000, answer_to(lines)):
            client.publish(f"{ANSWERS_TOPIC}/{DEVICE}", payload)

    with Listener(broker, respond):
        assert sender(broker).send(b"lines\n", 1_000) == answer_to(b"lines\n")
        monkeypatch.setattr(mqtt_sender, "MAX_OTHER_BYTES", 100)
        with pytest.raises(TooLarge):
            sender(broker).send(b"lines\n", 1_000)


def test_lines_pass_a_proxy(broker: int) -> None:
    def respond(client: Client, lines: bytes) -> None:
        client.publish(f"{ANSWERS_TOPIC}/{DEVICE}", answer_to(lines))

    with start_connect_proxy(broker) as proxy, Listener(broker, respond):
        assert sender(broker, proxy=proxy.url).send(b"lines\n", 1_000)
        assert proxy.heads[0].startswith(f"CONNECT localhost:{broker} HTTP/1.")


def test_a_broker_that_is_not_trusted_or_not_reached_is_named(guarded: int, certificates: Certificates) -> None:
    with pytest.raises(TlsFailed, match="not trusted"):
        sender(guarded, scheme="mqtts").send(b"lines\n", 1_000)
    pem = SystemAuthorities(certificates.ca.read_text())
    with pytest.raises(RepositoryAuthRequired, match="refuses the login"):
        sender(guarded, no_credentials(pem), scheme="mqtts").send(b"lines\n", 1_000)
    with pytest.raises(DownloadFailed, match="no connection"):
        sender(9).send(b"lines\n", 1_000)


def test_the_missing_extra_is_named_when_the_configuration_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.toml"
    text = 'directory = "d"\nrepository_url = "https://example.com/models/"\nfamily = "kws"\n[reports]\nurl = "{}"\n'
    path.write_text(text.format("mqtts://broker.example.com:8884"))
    assert load_config(path).reports.url == "mqtts://broker.example.com:8884"
    monkeypatch.setattr(reports, "find_spec", lambda _name: None)
    with pytest.raises(MqttMissing, match="paho-mqtt is not installed"):
        load_config(path)
    path.write_text(text.format("https://fleet.example.com"))
    assert load_config(path).reports.url == "https://fleet.example.com"
