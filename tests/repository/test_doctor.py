"""`repo verify` finds the defects of published repositories that our commands never create."""

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import Key, Signature, Signer
from tuf.api.metadata import Metadata, Root

from packager.commands.root import main
from packager.repository import tuf_documents
from packager.repository.published import PublishedDocuments
from packager.repository.staging import Staging
from tests.support.metadata_publisher import NOW_S, MetadataPublisher, build_publisher


def change_root(publisher: MetadataPublisher, change: Any) -> None:
    """Publish a changed root without checks, signed by the old and the new keys."""
    published = PublishedDocuments(publisher.repository.layout)
    root = tuf_documents.next_root(published.root, published.repository_id, NOW_S)
    change(root)
    Staging(publisher.repository.layout).put_document("root", Metadata[Root](root))
    assert publisher.repository.sign(publisher.signers).is_complete
    publisher.repository.publish(check_clients=False)


def run_repo_verify(
    publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]
) -> tuple[int, dict[str, list[str]]]:
    code = main(["repo", "verify", "--repo", os.fspath(publisher.repository.root), "--json"])
    report = json.loads(capfd.readouterr().out)
    assert report["is_sound"] == (code == 0)
    return code, {role["name"]: role["problems"] for role in report["roles"] if role["problems"]}


def test_a_sound_repository_is_proven_role_by_role(
    publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_repo_verify(publisher, capfd) == (0, {})


def test_a_role_that_one_algorithm_meets_is_found(
    publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]
) -> None:
    change_root(publisher, lambda root: setattr(root.roles["timestamp"], "threshold", 1))
    assert run_repo_verify(publisher, capfd) == (
        3,
        {
            "timestamp": [
                "its classical keys alone (1) meet the threshold 1",
                "its ML-DSA keys alone (1) meet the threshold 1",
            ]
        },
    )


def test_one_key_under_two_ids_counts_once(publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]) -> None:
    """TUF counts key ids: two ids of one Ed25519 key meet a threshold of two. We count public keys."""
    (signer, *_) = publisher.signers_of("snapshot")
    twin_id = "f" * 64
    twin = Key.from_dict(twin_id, copy.deepcopy(signer.public_key.to_dict()))

    class Twin(Signer):
        """A signer with the same private key under another key id."""

        @classmethod
        def from_priv_key_uri(cls, priv_key_uri: str, public_key: Key, secrets_handler: object = None) -> Signer:
            raise NotImplementedError

        @property
        def public_key(self) -> Key:
            return twin

        def sign(self, payload: bytes) -> Signature:
            return Signature(twin_id, signer.sign(payload).signature)

    def twice(root: Root) -> None:
        root.keys[twin_id] = twin
        root.roles["snapshot"].keyids = [signer.public_key.keyid, twin_id]

    publisher.signers.append(Twin())
    change_root(publisher, twice)
    code, found = run_repo_verify(publisher, capfd)
    assert code == 3
    assert found["snapshot"][0] == "the same public key is listed under 2 key ids"
    assert "threshold 2 cannot be met by 1 distinct keys" in found["snapshot"]


def test_a_classical_repository_that_does_not_say_so_is_unsound(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publisher = build_publisher(tmp_path / "publisher", classical=True)
    assert run_repo_verify(publisher, capfd) == (0, {})
    assert main(["repo", "verify", "--repo", os.fspath(publisher.repository.root)]) == 0
    assert "breaking Ed25519 is enough to sign for every role" in capfd.readouterr().out
    change_root(publisher, lambda root: root.unrecognized_fields.pop(tuf_documents.CLASSICAL_FIELD))
    code, found = run_repo_verify(publisher, capfd)
    assert code == 3
    assert set(found) == {"root", "targets", "snapshot", "timestamp", "fleet", "release-vision", "rollout-vision"}


def test_a_changed_file_is_found(publisher: MetadataPublisher, capfd: pytest.CaptureFixture[str]) -> None:
    (path,) = (publisher.published / "metadata").glob("1.fleet.json")
    newest = max((publisher.published / "metadata").glob("*.fleet.json"), key=lambda file: int(file.name.split(".")[0]))
    newest.write_bytes(newest.read_bytes().replace(b"fleet.json", b"fleet.jsom", 1))
    assert path.exists()
    assert main(["repo", "verify", "--repo", os.fspath(publisher.repository.root), "--json"]) == 3
    assert json.loads(capfd.readouterr().err)["error"]["reason"] == "repository-damaged"
