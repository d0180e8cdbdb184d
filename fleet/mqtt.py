"""Lines from an MQTT broker: the payload of a message is a batch of lines.

Rules:
- QoS 1, acknowledged after the commit: what the store could not take stays with the broker and comes again.
- The broker is not believed: each line proves its sender, as over HTTP. It can delay, repeat or drop.
- The session is kept (`clean_session` false), so that messages wait while the collector is away.
"""

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from bundle.errors import AirweightsError, InvalidUsage
from fleet.database import Database
from fleet.errors import BrokerUnavailable
from fleet.ingest import ingest
from fleet.line import MAX_BATCH_LINES

logger = logging.getLogger(__name__)

TOPIC: Final = "airweights/lines"
CLIENT_ID: Final = "airweights-collector"
PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
RETRY_S: Final = 5.0


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

    def start(self) -> None:
        """Connect, subscribe, and take lines in a thread until `stop`.

        Raises:
            InvalidUsage: the URL has another form.
            BrokerUnavailable: the broker cannot be reached.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in PORTS or not parts.hostname or parts.username or parts.query:
            found = "a user name" if parts.username else repr(self.url)
            raise InvalidUsage(
                f"--mqtt: found {found}, expected mqtt://HOST:PORT or mqtts://HOST:PORT",
                hint="name user and password in a file: --mqtt-password-file",
            )
        client = Client(CallbackAPIVersion.VERSION2, client_id=CLIENT_ID, clean_session=False, manual_ack=True)
        if parts.scheme == "mqtts":
            client.tls_set(None if self.ca_file is None else str(self.ca_file))
        if self.password_file is not None:
            user, _, password = self.password_file.read_text().strip().partition(":")
            client.username_pw_set(user, password)
        client.on_connect = _subscribe
        client.on_message = self._take
        try:
            client.connect(parts.hostname, parts.port or PORTS[parts.scheme])
        except OSError as error:
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
        lines = bytes(message.payload).splitlines()[:MAX_BATCH_LINES]
        while True:
            try:
                result = ingest(self.database, lines)
            except AirweightsError as error:
                logger.warning("lines from the broker wait: %s", error.message)
                if self._is_stopping:
                    return  # not acknowledged: it comes again
                time.sleep(RETRY_S)
                continue
            break
        if result.refused:
            logger.info("lines from the broker refused", extra={"lines": len(result.refused)})
        client.ack(message.mid, message.qos)


def _subscribe(client: Client, *_: object) -> None:
    client.subscribe(TOPIC, qos=1)
