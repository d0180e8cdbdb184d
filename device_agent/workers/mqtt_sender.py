"""Send lines to the collector through an MQTT broker, over sockets opened as the HTTP client's.

Sequence: connect, subscribe to the device's answers, publish the lines with QoS 1, wait for the answer.

Rules:
1. That the broker took a message proves nothing. A call succeeds with the collector's answer, which comes after its
   commit and names the SHA-256 of the message. Without one the lines stay unsent.
2. The answer is believed as little as that of an HTTP collector: it decides only what is sent again.
3. The broker gets the credentials if its origin is in `repository.send_credentials_to`: user name and password of
   `basic_auth_file`, or the device's id and the token of `token_file`. The client certificate likewise.
4. What a broker may send is bounded: MAX_OTHER_BYTES beside the answer, in ANSWER_S.
5. `socketpair` is not allowed in the jail, so paho's own loop is not used.
"""

import base64
import hashlib
import os
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from bundle import strict_json
from bundle.errors import DownloadFailed, Malformed, TooLarge
from device_agent.config.repository import MQTT_PORTS, origin_of, redact_url
from device_agent.errors import CollectorSilent, RepositoryAuthRequired
from device_agent.policy.proxy_choice import choose_proxy
from device_agent.workers.connection_opener import Opener, ascii_host
from device_agent.workers.http_client import HttpClient
from device_agent.workers.http_connection import describe_error, open_tunnel, tls_failed
from device_agent.workers.http_heads import received
from device_agent.workers.repository_credentials import basic_authorization

LINES_TOPIC: Final = "airweights/lines"
ANSWERS_TOPIC: Final = "airweights/answers"
ANSWER_S: Final = 60.0
MAX_OTHER_BYTES: Final = 64 * 1024
MAX_READ_BYTES: Final = 64 * 1024
LOGIN_REASONS: Final = ("Bad user name or password", "Not authorized")


class MqttSender:
    """Sends one batch of lines.

    Args:
        client: its settings and watchdog are used.
        url: URL of the broker.
        device_id: id of the device; the client identifier, and part of the topic of its answers.
    """

    def __init__(self, client: HttpClient, url: str, device_id: str) -> None:
        self._settings, self._watchdog, self._device_id = client.settings, client.watchdog, device_id
        self._url, self._shown = url, redact_url(url)
        self._opener = Opener(client.watchdog, ANSWER_S)
        parts = urlsplit(url)
        self._is_secure = parts.scheme == "mqtts"
        self._host, self._port = ascii_host(parts.hostname or ""), parts.port or MQTT_PORTS[parts.scheme]
        self._topic = f"{ANSWERS_TOPIC}/{device_id}"
        self._is_connected = self._is_subscribed = False
        self._answer: bytes | None = None
        self._problem: Exception | None = None

    def send(self, lines: bytes, max_bytes: int) -> bytes:
        """Publish lines, and return the collector's answer.

        Args:
            lines: the lines.
            max_bytes: limit of the answer.

        Raises:
            RepositoryAuthRequired: the broker wants other credentials, or forbids the topic.
            ConnectionFailed, ProxyFailed, ProxyAuthRequired, TlsFailed: the broker is not reached.
            CollectorSilent: no answer came in ANSWER_S.
            ServerTooSlow, DownloadFailed: the connection was closed, or the broker refuses it.
            TooLarge: the broker sends more than the limit.
        """
        digest = hashlib.sha256(lines).hexdigest()
        client = _CountedClient(self._open, self._device_id, max_bytes + MAX_OTHER_BYTES)
        client.on_connect, client.on_subscribe = self._note_connected, self._note_subscribed
        client.on_disconnect = self._note_disconnected
        client.on_message = lambda _client, _data, message: self._read(message, digest, max_bytes)
        self._log_in(client)
        self._opener.prepare(self._shown, "", lambda _address: None)
        deadline = time.monotonic() + ANSWER_S
        try:
            self._connect(client)
            self._run(client, deadline, lambda: self._is_connected)
            client.subscribe(self._topic, qos=1)
            self._run(client, deadline, lambda: self._is_subscribed)
            client.publish(LINES_TOPIC, lines, qos=1)
            self._run(client, deadline, lambda: self._answer is not None)
        finally:
            client.disconnect()
        assert self._answer is not None
        return self._answer

    def _log_in(self, client: Client) -> None:
        credentials = self._settings.credentials
        is_private = origin_of(self._url) in credentials.credential_origins
        if self._is_secure:
            client.tls_set_context(credentials.private_context if is_private else credentials.public_context)
        value = next((text for name, text in credentials.headers if name.lower() == "authorization"), "")
        kind, _, secret = value.partition(" ")
        if is_private and kind == "Basic":
            user, _, password = base64.b64decode(secret).decode().partition(":")
            client.username_pw_set(user, password)
        elif is_private and secret:
            client.username_pw_set(self._device_id, secret)

    def _open(self) -> socket.socket:
        proxy = choose_proxy(
            "https" if self._is_secure else "http",
            self._host,
            self._port,
            configured=self._settings.proxy,
            no_proxy=self._settings.no_proxy,
            environment=os.environ,
        )
        if proxy is None:
            return self._opener.open(self._host, self._port)
        authorization = self._settings.credentials.proxy_authorization or (
            basic_authorization(proxy.credentials) if proxy.credentials else ""
        )
        return open_tunnel(self._opener, proxy, authorization, self._host, self._port)

    def _connect(self, client: Client) -> None:
        try:
            with self._watchdog.waiting(self._shown):
                client.connect(self._host, self._port, keepalive=int(2 * ANSWER_S))
        except ssl.SSLError as error:
            raise tls_failed(error, self._shown) from error
        except (OSError, ValueError) as error:
            raise DownloadFailed(f"{self._shown}: no connection: {describe_error(error)}") from error

    def _run(self, client: Client, deadline: float, is_done: Callable[[], bool]) -> None:
        """Read and write until something is done."""
        while not is_done() and self._problem is None:
            sock, left_s = client.socket(), deadline - time.monotonic()
            if sock is None:
                raise DownloadFailed(f"{self._shown}: the broker closed the connection")
            if left_s <= 0:
                raise CollectorSilent(f"{self._shown}: no answer of a collector in {ANSWER_S:g} s")
            poll = select.poll()
            poll.register(sock, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
            is_pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
            ready = poll.poll(0 if is_pending else int(left_s * 1000) + 1)
            if is_pending or any(event & ~select.POLLOUT for _, event in ready):
                client.loop_read()
            if client.want_write():
                client.loop_write()
        if self._problem is not None:
            raise self._problem

    def _note_connected(
        self, _client: Client, _data: object, _flags: ConnectFlags, reason: ReasonCode, _properties: Properties | None
    ) -> None:
        self._is_connected = not reason.is_failure
        if reason.is_failure and str(reason) in LOGIN_REASONS:
            self._problem = RepositoryAuthRequired(
                f"{self._shown}: the broker refuses the login: {reason}",
                hint="add the broker to `repository.send_credentials_to`, and check `repository.basic_auth_file`",
            )
        elif reason.is_failure:
            self._problem = DownloadFailed(f"{self._shown}: the broker refuses the connection: {reason}")

    def _note_subscribed(
        self, _client: Client, _data: object, _id: int, reasons: list[ReasonCode], _properties: Properties | None
    ) -> None:
        self._is_subscribed = True
        if any(reason.is_failure for reason in reasons):
            self._problem = RepositoryAuthRequired(
                f"{self._shown}: the broker forbids the topic {self._topic}",
                hint="let each device read its answers, and write airweights/lines, in the broker's access list",
            )

    def _note_disconnected(
        self,
        _client: Client,
        _data: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self._problem is None and self._answer is None:
            self._problem = DownloadFailed(f"{self._shown}: the broker closed the connection: {reason}")

    def _read(self, message: MQTTMessage, digest: str, max_bytes: int) -> None:
        """Keep the answer to these lines; what else comes on the topic is late, retained or made up."""
        payload = bytes(message.payload)
        with suppress(Malformed, TooLarge):
            value = strict_json.decode(payload, what="answer", max_bytes=max_bytes)
            if not message.retain and isinstance(value, dict) and value.get("lines_sha256") == digest:
                self._answer = payload


class _CountedClient(Client):
    """A client whose socket is opened here, and whose received bytes are counted and bounded."""

    def __init__(self, open_socket: Callable[[], socket.socket], client_id: str, max_bytes: int) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
        self.connect_timeout = ANSWER_S
        self._open_socket, self._left_bytes = open_socket, max_bytes

    def _create_socket_connection(self) -> socket.socket:
        return self._open_socket()

    def _sock_recv(self, bufsize: int) -> bytes:
        data = super()._sock_recv(min(bufsize, MAX_READ_BYTES))
        received.total_bytes += len(data)
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            raise TooLarge("the broker sends more than an answer can have")
        return data
