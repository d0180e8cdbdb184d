"""The repository id does not depend on the layout of the shipped root's file."""

import json
from dataclasses import replace

import pytest

from bundle.errors import Malformed
from bundle.trust.repository_id import repository_id_of
from tests.support.metadata_publisher import MetadataPublisher, create_client


def test_a_shipped_root_with_other_white_space_is_the_same_repository(publisher: MetadataPublisher) -> None:
    client = create_client(publisher)
    shipped = client.root
    layouts = {
        "newline": shipped + b"\n",
        "carriage-return": shipped + b"\r\n",
        "pretty": json.dumps(json.loads(shipped), indent=2, sort_keys=True).encode(),
        "other-order": json.dumps(dict(reversed(json.loads(shipped).items()))).encode(),
    }
    expected = publisher.repository.repository_id
    assert repository_id_of(shipped) == expected
    for name, data in layouts.items():
        device = replace(client, folder=client.folder.with_name(name), root=data)
        assert device.check(publisher.published).repository_id == expected, name


@pytest.mark.parametrize("data", [b"", b"{}", b"<html>", b'{"signatures":[],"signed":{"_type":"root"}}'])
def test_bytes_that_are_no_root_are_refused(data: bytes) -> None:
    with pytest.raises(Malformed, match="first root"):
        repository_id_of(data)
