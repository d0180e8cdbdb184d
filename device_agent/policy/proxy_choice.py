"""The choice of the proxy for a request: the configured one, else that of the environment.

Rules:
1. `repository.proxy` replaces the variables; "none" means no proxy. `repository.no_proxy` replaces `no_proxy`.
2. Of the variables, `http_proxy` is for http, `https_proxy` for https, `all_proxy` for both; names in lower case come
   before names in upper case, as curl reads them. A proxy without a scheme is an HTTP proxy.
3. `no_proxy` lists, separated by commas: a host with all hosts below its domain (`example.com`, `.example.com`,
   `*.example.com`), an address, a network (`10.0.0.0/8`, `fd00::/8`), each with `:PORT` if it is for one port only; `*`
   stands for all hosts. Names are not resolved to compare them with networks.
4. Only HTTP proxies are supported: https requests are tunneled through them by CONNECT.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from device_agent.errors import ProxyFailed

NO_PROXY = "none"
DEFAULT_PROXY_PORT = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that requests are sent through.

    Attributes:
        host: name or address.
        port: its port.
        credentials: "USER:PASSWORD" from an environment variable, or "".
    """

    host: str
    port: int
    credentials: str = field(default="", repr=False)

    @property
    def url(self) -> str:
        """The URL for messages, without credentials."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def choose_proxy(
    scheme: str,
    host: str,
    port: int,
    *,
    configured: str,
    no_proxy: Sequence[str] | None,
    environment: Mapping[str, str],
) -> Proxy | None:
    """Return the proxy of a request, or None for a direct connection.

    Args:
        scheme: "http" or "https".
        host: host of the request.
        port: port of the request.
        configured: `repository.proxy`, or "".
        no_proxy: `repository.no_proxy`, or None.
        environment: the environment variables.

    Raises:
        ProxyFailed: the proxy's URL has a wrong form, or a scheme other than http.
    """
    url = configured or _variable(environment, f"{scheme}_proxy") or _variable(environment, "all_proxy")
    if not url or url == NO_PROXY:
        return None
    rules = _variable(environment, "no_proxy").split(",") if no_proxy is None else no_proxy
    if any(_is_match(rule.strip(), host, port) for rule in rules):
        return None
    return parse_proxy(url, "`repository.proxy`" if configured else f"the environment variable {scheme}_proxy")


def parse_proxy(url: str, where: str) -> Proxy:
    """Parse the URL of a proxy.

    Args:
        url: the URL; without a scheme it is an HTTP proxy.
        where: where it was found, for the error message, which does not contain the URL.

    Raises:
        ProxyFailed: it has a wrong form, or a scheme other than http.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ProxyFailed(f"{where} is not a URL", hint="expected http://HOST:PORT") from error
    if parts.scheme != "http":
        raise ProxyFailed(
            f"{where} names a proxy of the kind {parts.scheme!r}, only HTTP proxies are supported",
            hint="expected http://HOST:PORT; https requests are tunneled through it",
        )
    if not host:
        raise ProxyFailed(f"{where} names no host", hint="expected http://HOST:PORT")
    credentials = ""
    if parts.username is not None:
        credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port or DEFAULT_PROXY_PORT, credentials)


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name) or environment.get(name.upper()) or ""


def _is_match(rule: str, host: str, port: int) -> bool:
    if rule == "*":
        return True
    pattern, rule_port = split_port(rule)
    if not pattern or (rule_port is not None and rule_port != port):
        return False
    return is_host_match(pattern, host)


def split_port(rule: str) -> tuple[str, int | None]:
    """Split `HOST:PORT`, `[ADDRESS]:PORT` or `HOST` into host and port, or None without a port."""
    host, separator, port = rule.rpartition(":")
    if separator and port.isascii() and port.isdecimal() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return rule.strip("[]"), None


def is_host_match(pattern: str, host: str) -> bool:
    """Return whether a host is one of those that a pattern names.

    Args:
        pattern: a domain with or without `*.` or a dot at its start, an address, or a network.
        host: a name or an address.
    """
    address = parse_address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(pattern, strict=False)
        except ValueError:
            return False
    domain = pattern.lower().removeprefix("*").strip(".")
    name = host.lower().rstrip(".")
    return bool(domain) and (name == domain or name.endswith("." + domain))


def parse_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse a literal address; return None for a name.

    The zone is dropped, and an IPv6 address that maps an IPv4 address is returned as that one.
    """
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped
