"""Push to a registry, and read it by the rules that a device follows."""

from collections.abc import Callable

from bundle.errors import NotFound
from bundle.registry_paths import place_of
from packager.remote.push import PushReport, read_timestamps
from packager.remote.push_registry import push_to_registry
from packager.stores.registry_client import RegistryClient
from tests.support.metadata_publisher import CheckClient, MetadataPublisher


def push_all(publisher: MetadataPublisher, url: str) -> PushReport:
    """Push a publisher's folder to a registry."""
    layout = publisher.repository.layout
    return push_to_registry(layout, RegistryClient(url), read_timestamps(layout))


def fetcher_of(url: str) -> Callable[[str, int], bytes]:
    """Return a fetch function that reads a registry by the rules of bundle.registry_paths."""
    client = RegistryClient(url)

    def fetch(address: str, max_bytes: int) -> bytes:
        place = place_of(address.removeprefix(f"{url}/"))
        digest = place.digest
        if place.tag:
            manifest = client.read_manifest(place.tag)
            if manifest is None:
                raise NotFound(address)
            digest = manifest["layers"][0]["digest"]
        response = client._request("GET", f"blobs/{digest}", {})
        if response.status == 404:
            raise NotFound(address)
        return bytes(response.data)

    return fetch


def percent_seen_by(device: CheckClient, url: str) -> int:
    """Return the share of the rollout that a device verifies there."""
    return device.check(url, fetcher_of(url)).rollout.percent_bp
