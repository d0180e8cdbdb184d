"""A plain python-tuf client reads our repositories, hybrid and classical."""

from pathlib import Path

import pytest
from tuf.ngclient import Updater

from bundle.trust.role_names import release_target, rollout_target
from tests.support.metadata_publisher import CHANNEL, FAMILY, MetadataPublisher, build_publisher, start_server


@pytest.mark.parametrize("classical", [False, True])
def test_a_stock_client_reads_manifest_and_rollout(
    publisher: MetadataPublisher, tmp_path: Path, classical: bool
) -> None:
    if classical:
        publisher = build_publisher(tmp_path / "classical", classical=True)
        publisher.release("1.0.0", 1)
    url, stop = start_server(publisher.published)
    try:
        (tmp_path / "metadata").mkdir()
        (tmp_path / "targets").mkdir()
        client = Updater(
            str(tmp_path / "metadata"),
            f"{url}/metadata/",
            str(tmp_path / "targets"),
            f"{url}/targets/",
            bootstrap=(publisher.published / "metadata" / "1.root.json").read_bytes(),
        )
        client.refresh()
        for name in (release_target(FAMILY, "1.0.0"), rollout_target(FAMILY, CHANNEL)):
            found = client.get_targetinfo(name)
            assert found is not None
            assert Path(client.download_target(found)).stat().st_size == found.length
        assert client.get_targetinfo(release_target(FAMILY, "9.9.9")) is None
    finally:
        stop()
