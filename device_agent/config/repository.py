"""The table `[repository]` of the configuration: proxy, TLS, credentials and timeouts.

Rules:
- A URL has no user name, password or query: they would end up in messages. Files hold the credentials.
- No message contains a header's value, or the user name, password or query of a URL that was refused.
- This module only parses text. The supervisor opens the named files and never reads them; the fetcher reads them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Final

from device_agent.config.table import Table
from device_agent.errors import ConfigInvalid

REGISTRY_SCHEMES: Final = ("oci", "oci+http")
# the name must not have a part with which the paths of a repository begin
_REGISTRY_URL: Final = (
    r"oci(?:\+http)?://[^\s/?#@]+(?:/(?!(?:metadata|targets|blobs|envelopes)(?:/|$))[a-z0-9][a-z0-9._-]*)+/?"
)
URL_PATTERN: Final = re.compile(rf"(?:https?://[^\s/?#@]+(?:/[^\s?#]*)?|file:///[^\s?#]*|{_REGISTRY_URL})")
MIRROR_URL_PATTERN: Final = re.compile(rf"(?:https?://[^\s/?#@]+(?:/[^\s?#]*)?|{_REGISTRY_URL})")
HOST_PATTERN: Final = re.compile(r"[^\s/@?#:]{1,255}")
ORIGIN_PATTERN: Final = re.compile(r"(?:http|mqtt)s?://[^\s/?#@]+/?")
MQTT_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
DEFAULT_PORTS: Final = {"http": 80, "https": 443, **MQTT_PORTS}
PROXY_PATTERN: Final = re.compile(r"none|http://[^\s/?#@]+/?")
HEADER_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
HEADER_VALUE_PATTERN: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?")
HOST_RULE_PATTERN: Final = re.compile(r"[^\s/@?#]{1,255}(?:/[0-9]{1,3}(?::[0-9]{1,5})?)?")
MAX_PORT: Final = 65535
URL_EXPECTED: Final = (
    "a URL such as https://models.example.com/kws, oci://registry.example.com/kws or file:///media/stick, without query"
)
MIRROR_URL_EXPECTED: Final = (
    "URLs such as https://mirror.example.com/kws or oci://registry.example.com/kws, without query"
)
ORIGIN_EXPECTED: Final = "origins such as https://mirror.example.com, without path"
USER_INFO_HINT: Final = (
    "put USER:PASSWORD into a file of mode 0600 and name it as `repository.basic_auth_file`, "
    "or as `repository.proxy_auth_file` for a proxy"
)
RESERVED_HEADERS: Final = frozenset(
    {
        *("accept-encoding", "connection", "content-length", "host", "proxy-authorization", "range"),
        *("transfer-encoding", "te", "trailer", "upgrade", "expect", "if-range", "user-agent"),
        *("if-none-match", "if-modified-since", "if-match", "if-unmodified-since"),
    }
)
NO_PROXY: Final = "none"
SEALED_CLIENT_KEY: Final = "sealed"
MAX_ITEMS: Final = 64
MAX_WAIT_S: Final = 3600
PATH_KEYS: Final = ("ca_file", "client_cert", "token_file", "basic_auth_file", "headers_file", "proxy_auth_file")


@dataclass(frozen=True, slots=True)
class RepositorySettings:
    """Settings of the table `[repository]`.

    Attributes:
        ca_file: PEM file of certificate authorities to trust, beside those of the system.
        system_ca: whether the system's certificate authorities are trusted, too.
        client_cert: PEM file of the device's certificate for mutual TLS, with its chain.
        client_key: PEM file of its private key, or SEALED_CLIENT_KEY: the key that `identity seal-client-key` stored.
        token_file: file of a token, sent as `Authorization: Bearer`.
        basic_auth_file: file of one line USER:PASSWORD, sent as `Authorization: Basic`.
        headers: further header fields of each request, as pairs of name and value.
        headers_file: file of further header fields, one `Name: value` a line.
        send_credentials_to: origins beside that of `repository_url` that get the credentials.
        token_realm: host that may get the credentials to give tokens for a registry, or "" for hosts of the registry's
            own domain.
        proxy: URL of the proxy, NO_PROXY, or "" for the one that the environment variables name.
        proxy_auth_file: file of one line USER:PASSWORD for the proxy.
        no_proxy: hosts that are reached without the proxy, or None for those that the environment variable names.
        allow_redirects_to: hosts or networks that a redirect may lead to although their addresses are not public.
        first_byte_s: seconds from the request until the body's first byte has to arrive.
        stall_window_s: length of the window over which `update.min_rate_bytes_s` is measured, in seconds.
    """

    ca_file: Path | None = None
    system_ca: bool = True
    client_cert: Path | None = None
    client_key: Path | str | None = None
    token_file: Path | None = None
    basic_auth_file: Path | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    headers_file: Path | None = None
    send_credentials_to: tuple[str, ...] = ()
    token_realm: str = ""
    proxy: str = ""
    proxy_auth_file: Path | None = None
    no_proxy: tuple[str, ...] | None = None
    allow_redirects_to: tuple[str, ...] = ()
    first_byte_s: float = 60
    stall_window_s: float = 30

    @property
    def files(self) -> dict[str, Path]:
        """The configured files by their key; a sealed client key is not among them."""
        found = {key: getattr(self, key) for key in (*PATH_KEYS, "client_key")}
        return {key: path for key, path in found.items() if isinstance(path, Path)}


REPOSITORY_KEYS: Final = tuple(one.name for one in fields(RepositorySettings))


def parse_repository(table: Table, where: str, folder: Path) -> RepositorySettings:
    """Parse the table `[repository]`.

    Args:
        table: the table.
        where: name of the configuration file, for error messages.
        folder: folder that relative paths start at.

    Raises:
        ConfigInvalid: a value has a wrong form, or two keys contradict each other.
    """
    default = RepositorySettings()
    files = {key: table.path(key, folder) for key in PATH_KEYS if table.has(key)}
    client_key: Path | str | None = None
    if table.has("client_key"):
        is_sealed = table.is_equal("client_key", SEALED_CLIENT_KEY)
        client_key = SEALED_CLIENT_KEY if is_sealed else table.path("client_key", folder)
    settings = RepositorySettings(
        **files,
        system_ca=table.flag("system_ca", default.system_ca),
        client_key=client_key,
        headers=_parse_headers(table, where),
        send_credentials_to=parse_urls(table, "send_credentials_to", ORIGIN_PATTERN, ORIGIN_EXPECTED, MAX_ITEMS),
        token_realm=table.text("token_realm", None, HOST_PATTERN) if table.has("token_realm") else "",
        proxy=parse_url(table, "proxy", PROXY_PATTERN, "http://HOST:PORT or none", "") if table.has("proxy") else "",
        no_proxy=_parse_host_rules(table, "no_proxy") if table.has("no_proxy") else None,
        allow_redirects_to=_parse_host_rules(table, "allow_redirects_to"),
        first_byte_s=table.integer("first_byte_s", int(default.first_byte_s), 1, MAX_WAIT_S),
        stall_window_s=table.integer("stall_window_s", int(default.stall_window_s), 1, MAX_WAIT_S),
    )
    _check_combinations(settings, where)
    return settings


def _parse_host_rules(table: Table, key: str) -> tuple[str, ...]:
    rules = table.texts(key, HOST_RULE_PATTERN, MAX_ITEMS)
    for rule in rules:
        host, separator, port = rule.rpartition(":")
        is_port = bool(separator) and port.isdecimal() and (":" not in host or host.endswith("]") or "/" in host)
        if is_port and not 0 < int(port) <= MAX_PORT:
            raise table.invalid(key, f"has {rule!r}, expected a port from 1 to {MAX_PORT}")
    return rules


def parse_url(table: Table, key: str, pattern: re.Pattern[str], expected: str, default: str | None = None) -> str:
    """Return the URL of a key, without a slash at its end.

    Args:
        table: the table with the key.
        key: the key.
        pattern: form of the URL.
        expected: the form in words, for the error message.
        default: value of a missing key; None if the key is required.

    Raises:
        ConfigInvalid: the URL is missing, has a wrong form, or contains credentials or a query.
    """
    return _check_url(table, key, table.any_text(key, default), pattern, expected)


def parse_urls(table: Table, key: str, pattern: re.Pattern[str], expected: str, max_items: int) -> tuple[str, ...]:
    """Return the URLs of a key, each without a slash at its end.

    Args:
        table: the table with the key.
        key: the key.
        pattern: form of each URL.
        expected: the form in words, for the error message.
        max_items: maximum number of URLs.

    Raises:
        ConfigInvalid: there are too many, or one has a wrong form or contains credentials or a query.
    """
    values = table.any_texts(key, max_items)
    return tuple(_check_url(table, key, value, pattern, expected) for value in values)


def redact_url(text: str) -> str:
    """Return a URL for a message: without user name, password, query and fragment."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//[^\s]*@", "//…@", text, count=1), count=1, flags=re.DOTALL)


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, in lower case and with the port; "" for a `file:` URL.

    A registry's origin is that of its HTTP URLs.
    """
    pattern = r"(https?|mqtts?|oci(?:\+http)?)://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)(?::([0-9]*))?"
    found = re.match(pattern, url, re.IGNORECASE)
    if found is None:
        return ""
    scheme = {"oci": "https", "oci+http": "http"}.get(found[1].lower(), found[1].lower())
    return f"{scheme}://{found[2].lower()}:{int(found[3] or DEFAULT_PORTS[scheme])}"


def _check_url(table: Table, key: str, value: str, pattern: re.Pattern[str], expected: str) -> str:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://[^/]*@", value):
        raise table.invalid(
            key, f"has a user name or password in its URL {redact_url(value)!r}, expected {expected}", USER_INFO_HINT
        )
    if pattern.fullmatch(value) and not _has_valid_port(value):
        raise table.invalid(key, f"is {redact_url(value)!r}, expected a port from 1 to {MAX_PORT}")
    if not pattern.fullmatch(value):
        raise table.invalid(key, f"is {redact_url(value)!r}, expected {expected}")
    return value.rstrip("/")


def _has_valid_port(url: str) -> bool:
    found = re.match(r"(?:https?|mqtts?|oci(?:\+http)?)://(?:\[[^\]]*\]|[^/:]*)(?::([^/]*))?(?:/|$)", url)
    if found is None or found[1] is None:
        return found is not None or not url.startswith(("http", "mqtt", "oci"))
    return found[1].isascii() and found[1].isdecimal() and 0 < int(found[1]) <= MAX_PORT


def _parse_headers(table: Table, where: str) -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    for name, value in table.items("headers", MAX_ITEMS):
        if not isinstance(value, str):
            raise ConfigInvalid(f"{where}: repository.headers: the value of {name!r} is not a text")
        rows.append((name, value))
    try:
        check_headers(rows)
    except ValueError as error:
        raise ConfigInvalid(f"{where}: repository.headers: {error}") from error
    return tuple(rows)


def check_headers(rows: Iterable[tuple[str, str]]) -> None:
    """Check the names and values of header fields.

    Raises:
        ValueError: one cannot be sent. The message contains the name only.
    """
    names = set()
    for name, value in rows:
        if not HEADER_NAME_PATTERN.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a header field")
        if name.lower() in RESERVED_HEADERS or name.lower() in names:
            raise ValueError(f"the header field {name!r} is set by the agent itself, or twice")
        if not HEADER_VALUE_PATTERN.fullmatch(value):
            raise ValueError(f"the value of {name!r} is not printable ASCII of at most 8,192 characters")
        names.add(name.lower())


def _check_combinations(settings: RepositorySettings, where: str) -> None:
    problem = ""
    if (settings.client_cert is None) != (settings.client_key is None):
        problem = "client_cert and client_key belong together, found only one of them"
    elif settings.token_file is not None and settings.basic_auth_file is not None:
        problem = "token_file and basic_auth_file are both set, expected one of them"
    elif not settings.system_ca and settings.ca_file is None:
        problem = "system_ca is false and ca_file is missing, so that no server could be trusted"
    elif settings.proxy_auth_file is not None and settings.proxy == NO_PROXY:
        problem = "proxy_auth_file is set, but proxy is none"
    elif any(name.lower() == "authorization" for name, _ in settings.headers) and (
        settings.token_file is not None or settings.basic_auth_file is not None
    ):
        problem = "headers has Authorization beside token_file or basic_auth_file, expected one of them"
    if problem:
        raise ConfigInvalid(f"{where}: repository.{problem}")
