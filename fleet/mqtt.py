"""Lines from an MQTT broker: the payload of a message is a batch of lines.

Rules:
- QoS 1, acknowledged after the commit: what the store could not take stays with the broker and comes again.
- The broker is not believed: each line proves its sender, as over HTTP. It can delay, repeat or drop.
- Each device has its share of lines (fleet.rate_limit), as over HTTP. The sender is the broker: who may publish there
  can use up the share of a device, so the broker's access list should let only devices publish.
- The session is kept (`clean_session` false), so that messages wait while the collector is away.
- A message may have any number of lines; they are stored MAX_BATCH_LINES at a time.
- After the commit, each device of which a line was accepted gets an answer on a topic of its own: the SHA-256 of the
  message, and what the store has of the device's logs. An answer that is lost costs a message that comes again.
- Collectors of other machines or repositories have other client identifiers, so that each gets every message.
"""

import hashlib
import logging
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from bundle import strict_json
from bundle.errors import AirweightsError, InvalidUsage
from bundle.local_files import check_regular_file, read_local_file
from bundle.strict_json import JSON
from fleet.database import Database
from fleet.errors import BrokerUnavailable
from fleet.ingest import BatchResult, ingest
from fleet.line import MAX_BATCH_LINES
from fleet.rate_limit import TokenBuckets

logger = logging.getLogger(__name__)

TOPIC: Final = "airweights/lines"
ANSWERS_TOPIC: Final = "airweights/answers"
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
RETRY_S: Final = 5.0
MAX_PASSWORD_BYTES: Final = 4096


@dataclass(slots=True)
class MqttCollector:
    """A collector's connection to a broker, which a thread of paho serves.

    Attributes:
        database: the store.
        url: `mqtt://HOST[:PORT]` or `mqtts://HOST[:PORT]`.
        ca_file: certificate authorities to trust, or None for those of the system.
        password_file: file of one line USER:PASSWORD, or None.
    """

    database: Database
    url: str
    ca_file: Path | None = None
    password_file: Path | None = None
    _client: Client = field(init=False, repr=False)
    _is_stopping: bool = field(default=False, init=False, repr=False)
    _buckets: TokenBuckets = field(default_factory=TokenBuckets, init=False, repr=False)

    def start(self) -> None:
        """Connect, subscribe, and take lines in a thread until `stop`.

        Raises:
            InvalidUsage: the URL or the password file has another form.
            FileNotRegular: a named file is a FIFO, a device or a socket.
            BrokerUnavailable: the broker cannot be reached.
        """
        is_secure, host, port = _parse_url(self.url)
        client = Client(CallbackAPIVersion.VERSION2, client_id=self._client_id(), clean_session=False, manual_ack=True)
        if is_secure:
            if self.ca_file is not None:
                check_regular_file(self.ca_file)
            client.tls_set(None if self.ca_file is None else str(self.ca_file))
        if self.password_file is not None:
            client.username_pw_set(*_read_login(self.password_file))
        client.on_connect = _subscribe
        client.on_message = self._take
        try:
            client.connect(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that no host can have
            raise BrokerUnavailable(f"{self.url}: {error}") from error
        client.loop_start()
        self._client = client

    def stop(self) -> None:
        """Disconnect, and end the thread."""
        self._is_stopping = True
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, client: Client, _: object, message: MQTTMessage) -> None:
        """Ingest the lines of a message, and acknowledge it when they are committed."""
        payload, result = bytes(message.payload), BatchResult()
        lines = payload.splitlines()
        for start in range(0, len(lines), MAX_BATCH_LINES):
            stored = self._store(lines[start : start + MAX_BATCH_LINES])
            if stored is None:
                return  # not acknowledged: it comes again
            result.add(stored, start)
        if result.refused:
            logger.info("lines from the broker refused", extra={"lines": len(result.refused)})
        digest = hashlib.sha256(payload).hexdigest()
        for device_id, logs in result.devices.items():
            stored_logs: dict[str, JSON] = {log: one.as_json() for log, one in sorted(logs.items())}
            answer: JSON = {"lines_sha256": digest, "logs": stored_logs}
            client.publish(f"{ANSWERS_TOPIC}/{device_id}", strict_json.encode(answer))
        client.ack(message.mid, message.qos)

    def _client_id(self) -> str:
        name = f"{socket.gethostname()} {self.database.repository_id}"
        return f"airweights-collector-{hashlib.sha256(name.encode()).hexdigest()[:12]}"

    def _store(self, lines: list[bytes]) -> BatchResult | None:
        """Ingest a batch, again until the store takes it; return None if the collector stops before."""
        is_repeat = False  # its tokens are taken already
        while True:

            def is_allowed(device_id: str, is_free: bool = is_repeat) -> bool:
                return is_free or self._buckets.take(self.url, device_id)

            try:
                return ingest(self.database, lines, is_allowed=is_allowed)
            except AirweightsError as error:
                logger.warning("lines from the broker wait: %s", error.message)
            is_repeat = True
            if self._is_stopping:
                return None
            time.sleep(RETRY_S)


def _parse_url(url: str) -> tuple[bool, str, int]:
    """Return whether a broker's URL asks for TLS, its host and its port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # a port above 65535, or half an IPv6 address
        parts = urlsplit("")
        host = port = None
    if parts.scheme not in PORTS or not host or parts.username is not None or parts.query:
        found = "a user name" if "@" in url else repr(url)
        raise InvalidUsage(
            f"--mqtt: found {found}, expected mqtt://HOST:PORT or mqtts://HOST:PORT",
            hint="name user and password in a file: --mqtt-password-file",
        )
    return parts.scheme == "mqtts", host, port or PORTS[parts.scheme]


def _read_login(path: Path) -> tuple[str, str]:
    """Return user and password of a file of one line."""
    try:
        user, colon, password = read_local_file(path, MAX_PASSWORD_BYTES).decode().strip().partition(":")
    except UnicodeDecodeError as error:
        raise InvalidUsage(f"{path}: expected one line USER:PASSWORD in UTF-8") from error
    if not colon or "\n" in password:
        raise InvalidUsage(f"{path}: expected one line USER:PASSWORD")
    return user, password


def _subscribe(client: Client, _: object, __: object, reason: ReasonCode, ___: object) -> None:
    if reason.is_failure:
        logger.warning("the broker refuses the connection: %s", reason)
        return
    client.subscribe(TOPIC, qos=1)
