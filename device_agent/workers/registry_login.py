"""Requests to an OCI registry: without credentials first, then as its challenge says.

Rules:
1. A request is sent as the last one that succeeded was: without Authorization at first. After 401, the challenge
   decides: "Basic" gets the configured password, "Bearer" a token.
2. A token is requested from the challenge's realm: without credentials first, and with them if that is not enough. A
   configured `token_file` is a token already, and is not sent to a realm.
3. Credentials go to the registry, if it is the configured origin (device_agent.workers.http_client, rule 1), and to the
   realm if its host is `repository.token_realm`. By default that is a host of the registry's own domain. A realm is
   reached under the rules of a redirect (device_agent.policy.redirect_rules).
4. A token is kept in memory until the registry refuses it. No message contains one.
"""

import json
import re
from typing import Final
from urllib.parse import urlencode, urlsplit

from bundle.errors import AccessDenied, DownloadFailed, NotFound, TooLarge
from device_agent.config.repository import origin_of, redact_url
from device_agent.errors import RepositoryAuthRequired, TokenRealmRefused
from device_agent.workers.http_client import HttpClient
from device_agent.workers.http_response import HttpResponse

MAX_TOKEN_BYTES: Final = 64 * 1024
FIELD_PATTERN: Final = re.compile(r'([a-z]+)="([^"]*)"')
TOKEN_PATTERN: Final = re.compile(r"[\x21-\x7e]{1,32768}")
ADDRESS_PATTERN: Final = re.compile(r"[0-9.]+|\[.*\]|.*:.*")
SHORT_LABEL: Final = 3  # of a second-level label such as `co` in `co.uk`, below which others have names


def open_registry_url(client: HttpClient, base: str, path: str, headers: dict[str, str]) -> HttpResponse:
    """Send a request to a registry, with as much authentication as it wants.

    Args:
        client: sends the requests; its watchdog must watch.
        base: HTTP URL of the repository name.
        path: path below it.
        headers: header fields of the request.

    Raises:
        NotFound: 404 or 410, or 403 (AccessDenied).
        RepositoryAuthRequired: there are no credentials, or they are not enough.
        TokenRealmRefused: tokens come from a host that must not get the credentials.
        DownloadFailed: the request failed.
    """
    origin, url = origin_of(base), f"{base}/{path}"
    client.authorizations.setdefault(origin, "")
    credentials = _credentials_of(client, origin)
    refused: RepositoryAuthRequired | NotFound
    try:
        return client.open(url, headers)
    except RepositoryAuthRequired as error:
        refused, challenge = error, client.challenge
    for is_anonymous in (True, False) if credentials else (True,):
        authorization = _authorize(client, base, challenge, "" if is_anonymous else credentials)
        if not authorization:
            continue
        client.authorizations[origin] = authorization
        try:
            return client.open(url, headers)
        except (RepositoryAuthRequired, NotFound) as error:
            # a registry answers 403 to a token that allows too little; without credentials, that is its last word
            if isinstance(error, NotFound) and not (is_anonymous and credentials and isinstance(error, AccessDenied)):
                raise
            client.authorizations[origin] = ""
            refused = error
    raise refused


def _credentials_of(client: HttpClient, origin: str) -> str:
    """Return the configured Authorization for this registry, or ""."""
    credentials = client.settings.credentials
    if origin not in credentials.credential_origins:
        return ""
    return next((value for name, value in credentials.headers if name.lower() == "authorization"), "")


def _authorize(client: HttpClient, base: str, challenge: str, credentials: str) -> str:
    """Return the Authorization that a challenge asks for, or "" if there is none."""
    scheme, _, rest = challenge.partition(" ")
    fields = dict(FIELD_PATTERN.findall(rest))
    if scheme.lower() != "bearer" or credentials.startswith("Bearer "):
        return credentials
    realm, scope = fields.get("realm", ""), f"repository:{base.partition('/v2/')[2]}:pull"
    query = urlencode({"service": fields.get("service", ""), "scope": scope})
    _check_realm(client, base, realm, has_credentials=bool(credentials))
    origin = origin_of(realm)
    before = client.authorizations.get(origin)
    client.authorizations[origin] = credentials
    try:
        response = client.open(f"{realm}{'&' if '?' in realm else '?'}{query}", {}, source=base)
    except (RepositoryAuthRequired, NotFound):
        return ""
    finally:
        if before is None:
            del client.authorizations[origin]
        else:
            client.authorizations[origin] = before
    return f"Bearer {_read_token(response)}"


def _check_realm(client: HttpClient, base: str, realm: str, *, has_credentials: bool) -> None:
    registry, host = urlsplit(base).hostname or "", urlsplit(realm).hostname or ""
    shown = redact_url(realm)
    if not origin_of(realm) or (base.startswith("https:") and not realm.startswith("https:")):
        raise TokenRealmRefused(
            f"{redact_url(base)}: the registry names the token realm '{shown[:80]}', expected https"
        )
    allowed = client.settings.token_realm
    is_allowed = host == allowed if allowed else is_own_domain(host, registry)
    if has_credentials and not is_allowed:
        raise TokenRealmRefused(
            f"{redact_url(base)}: tokens come from {host}, which must not get the credentials for {registry}",
            hint="if this is right, set `repository.token_realm` to that host",
        )


def is_own_domain(host: str, registry: str) -> bool:
    """Return whether a host is the registry, below it, or beside it in a domain of its own.

    Args:
        host: name of the host.
        registry: name of the registry.
    """
    if host == registry:
        return True
    if ADDRESS_PATTERN.fullmatch(registry):
        return False
    labels = registry.split(".")[1:]
    is_shared = len(labels) < 2 or (len(labels) == 2 and len(labels[0]) <= SHORT_LABEL and len(labels[1]) == 2)
    domain = registry if is_shared else ".".join(labels)
    return host == domain or host.endswith(f".{domain}")


def _read_token(response: HttpResponse) -> str:
    try:
        text = response.read(MAX_TOKEN_BYTES)
    except TooLarge as error:
        raise DownloadFailed(f"{response.url}: the token is longer than {MAX_TOKEN_BYTES} bytes") from error
    finally:
        response.close()
    try:
        answer = json.loads(text)
        token = str(answer.get("token") or answer.get("access_token") or "")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DownloadFailed(f"{response.url}: answers without a token") from error
    if not TOKEN_PATTERN.fullmatch(token):
        raise DownloadFailed(f"{response.url}: answers without a token")
    return token
