"""Refuse requests that web pages send; accept those of programs on this machine.

A browser lets any page send requests to a loopback port: with a name of the page's own that resolves to 127.0.0.1 (DNS
rebinding), or to the port itself, without reading the response. Programs need no protection from each other here.
Rules:
1. A request has exactly one Host (400). Over TCP, its name is a name of this machine or one of `allowed_hosts` (403);
   an absolute URL counts as a Host. No browser can reach a Unix socket, so any name is accepted there.
2. An Origin is this endpoint's own, with such a name and the port of the Host, or one of `allowed_origins` (403). A
   request without Origin that a browser marks as cross-site is refused, except for a visit to a page.
3. A browser sends these types of body without asking first: text, multipart and forms. They are refused (415). A form
   type without any field that browsers add is accepted: `curl -d` and Python's urllib send it by default.
4. Only the origins of `allowed_origins` get the CORS fields, and with the configured text, not the client's.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from device_agent.front.requests import RequestFailed

Headers = list[tuple[bytes, bytes]]

AUTHORITY_PATTERN: Final = re.compile(rb"(\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::([0-9]{1,5}))?")
LOCAL_NAME_PATTERN: Final = re.compile(rb"localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")
ORIGIN_PATTERN: Final = re.compile(rb"([a-z][a-z0-9+.-]*)://(.+)")
DEFAULT_PORTS: Final = {b"http": b"80", b"https": b"443"}
FORM_TYPE: Final = b"application/x-www-form-urlencoded"
PREFLIGHT_HEADERS: Final[Headers] = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"content-type, content-encoding, inference-header-content-length"),
    (b"access-control-max-age", b"600"),
]


class AccessRules:
    """Checks the header of each request against the rules of this module.

    Args:
        allowed_hosts: further names for Host, lower case, without port.
        allowed_origins: further origins, as `scheme://name[:port]`.
        is_unix: the endpoint is a Unix socket.
    """

    def __init__(self, allowed_hosts: Sequence[str], allowed_origins: Sequence[str], *, is_unix: bool) -> None:
        self._hosts = frozenset(host.encode() for host in allowed_hosts)
        self._origins = {origin.encode(): origin.encode() for origin in allowed_origins}
        self._is_unix = is_unix

    def check(self, method: str, headers: Sequence[tuple[bytes, bytes]], authority: bytes | None) -> Headers:
        """Check a request; return the CORS fields for its response.

        Args:
            method: the HTTP method.
            headers: fields of the request, with names in lower case.
            authority: the authority of an absolute URL in the request line, or None.

        Raises:
            RequestFailed: 400, 403 or 415, as the rules of this module say.
        """
        fields: dict[bytes, bytes] = {}
        for name, value in headers:
            if name in (b"host", b"origin", b"content-type") and name in fields:
                raise RequestFailed(400, f"{name.decode()} is given twice", closes_connection=True)
            fields[name] = value.strip()
        if b"host" not in fields:
            raise RequestFailed(400, "Host is missing", closes_connection=True)
        ports = {self._check_host(value) for value in (fields[b"host"], authority) if value is not None}
        granted = self._check_origin(fields, method, ports)
        if method == "POST":
            _check_content_type(fields)
        if granted is None:
            return []
        return [(b"access-control-allow-origin", granted), (b"vary", b"origin")]

    def _check_host(self, value: bytes) -> bytes:
        """Return the port of a Host field; b"" if it has none (rule 1)."""
        found = AUTHORITY_PATTERN.fullmatch(value.lower())
        if found is None and not self._is_unix:
            raise RequestFailed(400, "Host: expected a name, with or without a port", closes_connection=True)
        if found is None:
            return b""
        if not self._is_unix and not self._is_own_name(found[1]):
            raise RequestFailed(
                403,
                "Host: not a name of this machine; serve.allowed_hosts in the configuration can allow further names",
                closes_connection=True,
            )
        return found[2] or b""

    def _check_origin(self, fields: dict[bytes, bytes], method: str, ports: set[bytes]) -> bytes | None:
        """Return the origin of `allowed_origins` that sent the request, or None (rule 2)."""
        origin = fields.get(b"origin")
        if origin is None:
            is_visit = method in ("GET", "HEAD") and fields.get(b"sec-fetch-mode") == b"navigate"
            if fields.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and not is_visit:
                raise RequestFailed(403, "a page of another site sent this request", closes_connection=True)
            return None
        configured = self._origins.get(origin.lower())
        if configured is None and not self._is_own_origin(origin.lower(), ports):
            raise RequestFailed(
                403,
                "Origin: not this endpoint's; serve.allowed_origins in the configuration can allow further origins",
                closes_connection=True,
            )
        return configured

    def _is_own_origin(self, origin: bytes, ports: set[bytes]) -> bool:
        parts = ORIGIN_PATTERN.fullmatch(origin)
        found = AUTHORITY_PATTERN.fullmatch(parts[2]) if parts else None
        if parts is None or found is None or not self._is_own_name(found[1]):
            return False
        default = DEFAULT_PORTS.get(parts[1], b"")
        return bool(default) and all((port or default) == (found[2] or default) for port in ports)

    def _is_own_name(self, name: bytes) -> bool:
        name = name.removesuffix(b".")
        return bool(LOCAL_NAME_PATTERN.fullmatch(name)) or name in self._hosts


def _check_content_type(fields: dict[bytes, bytes]) -> None:
    kind = fields.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind == b"text/plain" or kind.startswith(b"multipart/") or (kind == FORM_TYPE and _is_of_browser(fields)):
        raise RequestFailed(
            415,
            "Content-Type: expected application/json, or application/octet-stream with binary data; "
            "forms, multipart and plain text are refused",
            closes_connection=True,
        )


def _is_of_browser(fields: Mapping[bytes, bytes]) -> bool:
    return fields.get(b"user-agent", b"").startswith(b"Mozilla/") or any(
        name in (b"origin", b"referer", b"cookie") or name.startswith(b"sec-") for name in fields
    )
