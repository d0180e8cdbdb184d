"""The redirects that are followed: from where, to where, and to which addresses.

Rules:
1. At most MAX_REDIRECTS redirects, never from https to http, and never to a URL with a user name.
2. A redirect to another host may lead to a public address. It may lead to a loopback, link-local or private address
   only if the repository has an address of the same kind, or if `repository.allow_redirects_to` names the target. So a
   server outside cannot make devices send requests inside of their network.
3. Resolved addresses are checked, and the connection goes to a checked address. Behind a proxy, which resolves names
   itself, only literal addresses can be checked.
"""

import ipaddress
import re
from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import urljoin, urlsplit

from device_agent.errors import RedirectRefused
from device_agent.policy.proxy_choice import is_host_match, parse_address, split_port

MAX_REDIRECTS: Final = 5
PUBLIC: Final = "public"
NAT64_NETWORK: Final = ipaddress.ip_network("64:ff9b::/96")


def redirect_target(url: str, location: str, shown: str) -> str:
    """Return the absolute URL that a redirect leads to.

    Args:
        url: URL of the request.
        location: value of the field `Location`, "" if it is missing.
        shown: the URL for messages.

    Raises:
        RedirectRefused: it is missing, malformed, or not allowed by rule 1.
    """
    if not location:
        raise RedirectRefused(f"{shown}: redirects without saying where")
    try:
        # Location is often sent as raw UTF-8, which http.client reads as Latin-1
        target = urljoin(url, location.encode("latin-1", "replace").decode("utf-8", "replace").strip())
        parts = urlsplit(target)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise RedirectRefused(f"{shown}: redirects to something that is not a URL") from error
    if parts.scheme not in ("http", "https") or not host or re.search(r"[\x00-\x20\x7f]", target):
        raise RedirectRefused(f"{shown}: redirects to '{parts.scheme[:20]}:…', expected http or https")
    if url.startswith("https:") and parts.scheme != "https":
        raise RedirectRefused(f"{shown}: redirects from https to http")
    if parts.username is not None:
        raise RedirectRefused(f"{shown}: redirects to a URL with a user name")
    return target.partition("#")[0]


def kind_of_address(text: str) -> str:
    """Return the kind of an address: "loopback", "link-local", "private" or PUBLIC.

    All other special addresses count as private. A host name is PUBLIC, except for localhost.
    """
    address = parse_address(text)
    if address is None:
        name = text.lower().rstrip(".")
        return "loopback" if name == "localhost" or name.endswith(".localhost") else PUBLIC
    if isinstance(address, ipaddress.IPv6Address) and address in NAT64_NETWORK:
        return kind_of_address(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    if address.is_loopback or address.is_unspecified:
        return "loopback"
    if address.is_link_local:
        return "link-local"
    return PUBLIC if address.is_global and not address.is_multicast else "private"


def check_redirect_address(
    host: str, port: int, address: str, allowed_kinds: Collection[str], allowed_targets: Sequence[str], shown: str
) -> None:
    """Check one address of a redirect's target against rule 2.

    Args:
        host: host of the target.
        port: port of the target.
        address: one of its addresses.
        allowed_kinds: kinds of the repository's own addresses.
        allowed_targets: `repository.allow_redirects_to`.
        shown: the target for messages.

    Raises:
        RedirectRefused: the address is not allowed.
    """
    kind = kind_of_address(address)
    if kind == PUBLIC or kind in allowed_kinds:
        return
    for rule in allowed_targets:
        pattern, rule_port = split_port(rule)
        if rule_port in (None, port) and (is_host_match(pattern, host) or is_host_match(pattern, address)):
            return
    raise RedirectRefused(
        f"{shown}: a redirect leads to the {kind} address {address}, where the repository is not",
        hint="if this is right, name the host or network in `repository.allow_redirects_to`",
    )
