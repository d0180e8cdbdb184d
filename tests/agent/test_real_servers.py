"""A device updates from nginx (TLS, mTLS, Basic, Bearer, codings), directly and through tinyproxy and squid."""

from dataclasses import replace

import pytest

from device_agent.commands import root
from device_agent.config.repository import RepositorySettings
from tests.support.publisher import DeviceUnderTest
from tests.support.real_servers import RealServers

# scheme, first part of the path, whether its credentials are given, reason
PLACES = [
    ("https", "open", True, ""),
    ("http", "open", True, ""),
    ("https", "basic", True, ""),
    ("https", "bearer", True, ""),
    ("https", "mtls", True, ""),
    ("https", "identity", True, ""),
    ("http", "aws-chunked", True, ""),
    ("https", "basic", False, "repository-auth-required"),
    ("http", "bearer", False, "repository-auth-required"),
    ("https", "mtls", False, "access-denied"),
    ("http", "portal", True, "repository-not-reached"),
    ("https", "other", True, "another-repository"),
]


def settings_for(servers: RealServers, place: str, proxy: str, *, has_credentials: bool = True) -> RepositorySettings:
    """Return the settings that reach a place.

    Args:
        servers: the running servers.
        place: name of the first part of the path.
        proxy: name of the proxy, or "".
        has_credentials: whether to give the credentials that the place wants.
    """
    if proxy and proxy not in servers.proxies:
        pytest.skip(f"{proxy} is not installed")
    settings = RepositorySettings(
        ca_file=servers.tls.ca, system_ca=False, proxy=servers.proxies[proxy] if proxy else "none", no_proxy=()
    )
    if proxy == "tinyproxy":
        settings = replace(settings, proxy_auth_file=servers.folder / "proxy-login")
    if has_credentials and place == "basic":
        settings = replace(settings, basic_auth_file=servers.folder / "basic")
    if has_credentials and place == "bearer":
        settings = replace(settings, token_file=servers.folder / "token")
    if has_credentials and place == "mtls":
        settings = replace(settings, client_cert=servers.tls.client, client_key=servers.tls.client_key)
    return settings


@pytest.mark.parametrize(("scheme", "place", "has_credentials", "reason"), PLACES)
@pytest.mark.parametrize("proxy", ["", "tinyproxy", "squid"])
def test_a_device_updates_from_a_real_server_or_names_what_is_wrong(
    proxy: str,
    scheme: str,
    place: str,
    has_credentials: bool,
    reason: str,
    real_servers: RealServers,
    installed: DeviceUnderTest,
) -> None:
    settings = settings_for(real_servers, place, proxy, has_credentials=has_credentials)
    url = real_servers.url if scheme == "https" else real_servers.plain_url
    result = installed.update(repository_url=f"{url}/{place}", repository=settings)
    outcome = {"": "nothing-new", "another-repository": "refused"}.get(reason, "unavailable")
    assert (result.outcome.value, result.reason) == (outcome, reason), result.detail


def test_a_server_of_an_unknown_authority_is_named(real_servers: RealServers, installed: DeviceUnderTest) -> None:
    result = installed.update(repository_url=f"{real_servers.url}/open", repository=RepositorySettings(proxy="none"))
    assert (result.outcome.value, result.reason) == ("unavailable", "tls-failed")


@pytest.mark.parametrize("proxy", ["", "tinyproxy", "squid"])
def test_an_update_arrives_through_a_store_that_names_a_coding(
    proxy: str, real_servers: RealServers, installed: DeviceUnderTest
) -> None:
    settings = settings_for(real_servers, "update", proxy)
    result = installed.update(repository_url=f"{real_servers.url}/update", repository=settings)
    assert (result.outcome.value, result.reason) == ("staged", ""), result.detail


def test_a_client_key_sealed_in_the_key_storage_reaches_nginx(
    real_servers: RealServers, installed: DeviceUnderTest
) -> None:
    words = ["--config", str(installed.config_path), "identity", "seal-client-key", str(real_servers.tls.client_key)]
    assert root.main(words) == 0
    settings = replace(settings_for(real_servers, "mtls", ""), client_key="sealed")
    result = installed.update(repository_url=f"{real_servers.url}/mtls", repository=settings)
    assert (result.outcome.value, result.reason) == ("nothing-new", ""), result.detail
