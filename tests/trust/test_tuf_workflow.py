"""The client workflow of the TUF specification (5.3 to 5.7), step by step, through the conformance command line.

Each test serves a repository, which may contain metadata that ours never has. It checks what an external suite can
see: the exit status, the cached metadata, the requests and the downloaded files.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, TargetFile, Timestamp

from device_agent.workers import tuf_conformance
from tests.support.simulated_repository import TOP_LEVEL_ROLES, SimulatedRepository, in_days

PLAIN = ("targets", "snapshot", "timestamp")
DAY_S = 86_400


class ConformanceClient:
    """The command line with its own folders, run in this process, which is much faster than a subprocess."""

    def __init__(self, folder: Path, url: str, root: bytes) -> None:
        self.metadata, self.targets, self._url = folder / "metadata", folder / "targets", url
        self.targets.mkdir(parents=True)
        (folder / "root.json").write_bytes(root)
        assert self.run("init", str(folder / "root.json")) == 0

    def run(self, *words: str) -> int:
        return tuf_conformance.main(["--metadata-dir", str(self.metadata), *words])

    def refresh(self) -> int:
        return self.run(*self.refresh_arguments())

    def refresh_arguments(self) -> list[str]:
        return ["--metadata-url", f"{self._url}/metadata/", "refresh"]

    def download(self, *names: str) -> int:
        target_arguments = [word for name in names for word in ("--target-name", name)]
        where = ["--target-base-url", f"{self._url}/targets/", "--target-dir", str(self.targets)]
        return self.run("--metadata-url", f"{self._url}/metadata/", *target_arguments, *where, "download")

    @property
    def trusted_versions(self) -> dict[str, int]:
        """The version of each cached role."""
        found = {}
        for path in self.metadata.iterdir():
            if path.name.endswith(".json"):
                found[path.name.removesuffix(".json")] = json.loads(path.read_bytes())["signed"]["version"]
        return found

    @property
    def downloaded(self) -> list[bytes]:
        files = [path for path in self.targets.rglob("*") if path.is_file()]
        return [path.read_bytes() for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


@pytest.fixture
def repo() -> SimulatedRepository:
    return SimulatedRepository()


@pytest.fixture
def client(repo: SimulatedRepository, tmp_path: Path) -> Iterator[ConformanceClient]:
    with repo.serve() as url:
        yield ConformanceClient(tmp_path, url, repo.served["metadata/1.root.json"])


# 5.2, 5.3: root


def test_a_refresh_asks_for_each_role_once_and_keeps_the_bytes_served(
    repo: SimulatedRepository, client: ConformanceClient
) -> None:
    repo.served["metadata/timestamp.json"] += b" "
    assert client.refresh() == 0
    assert repo.requested_paths == [
        f"metadata/{name}.json" for name in ("2.root", "timestamp", "1.snapshot", "1.targets")
    ]
    assert client.trusted_versions == dict.fromkeys(TOP_LEVEL_ROLES, 1)
    assert (client.metadata / "timestamp.json").read_bytes() == repo.served["metadata/timestamp.json"]


def test_a_download_refreshes_first(repo: SimulatedRepository, client: ConformanceClient) -> None:
    assert client.download("nothing of that name") == 1
    assert len(repo.requested_paths) == 4
    assert client.trusted_versions == dict.fromkeys(TOP_LEVEL_ROLES, 1)


@pytest.mark.parametrize("damage", ["no version", "wrong signature", "no signature", "not json", "other role"])
def test_a_bad_first_root_makes_no_request(repo: SimulatedRepository, client: ConformanceClient, damage: str) -> None:
    document = json.loads(repo.served["metadata/1.root.json"])
    match damage:
        case "no version":
            del document["signed"]["version"]
        case "wrong signature":
            document["signatures"][0]["sig"] = "30450221" + "00" * 67
        case "no signature":
            document["signatures"] = []
        case "other role":
            document = json.loads(repo.served["metadata/1.targets.json"])
    path = client.metadata / tuf_conformance.SHIPPED_ROOT_NAME
    path.write_bytes(b"{" if damage == "not json" else json.dumps(document).encode())
    assert client.refresh() == 1
    assert repo.requested_paths == []


def test_roots_are_walked_one_by_one_and_asked_for_once(repo: SimulatedRepository, client: ConformanceClient) -> None:
    for _ in range(5):
        repo.publish("root")
    assert client.refresh() == 0
    assert repo.requested_paths[:6] == [f"metadata/{version}.root.json" for version in range(2, 8)]
    repo.requested_paths.clear()
    assert client.refresh() == 0
    assert repo.requested_paths[0] == "metadata/7.root.json"
    assert client.trusted_versions["root"] == 6


# (keys, threshold, keys that sign) of root after root; the last is refused where it says so
Step = tuple[tuple[int, ...], int, tuple[int, ...]]
ROTATIONS: dict[str, tuple[list[Step], bool]] = {
    "one key follows another": ([((1,), 1, (1,)), ((2,), 1, (2, 1)), ((2,), 1, (2,))], True),
    "signatures of unknown keys": ([((1,), 1, (3, 1, 4)), ((2,), 1, (3, 2, 1, 4))], True),
    "any three of five": ([((0, 1, 2, 3, 4), 3, (0, 2, 4)), ((0, 1, 2, 3, 4), 3, (0, 1, 3))], True),
    "all five replaced": (
        [((0, 1, 2, 3, 4), 3, (0, 2, 4)), ((5, 6, 7, 8, 9), 3, (0, 2, 4, 5, 6, 7)), ((5, 6, 7, 8, 9), 3, (7, 8, 9))],
        True,
    ),
    "threshold raised": ([((1, 2, 3), 1, (1,)), ((1, 2, 3), 2, (1, 2))], True),
    "threshold lowered": ([((1, 2, 3), 2, (1, 2)), ((1, 2, 3), 1, (1, 2)), ((1, 2, 3), 1, (1,))], True),
    "not by the old key": ([((1,), 1, (1,)), ((2,), 1, (2, 3, 4))], False),
    "not by the new key": ([((1,), 1, (1,)), ((2,), 1, (1, 3, 4))], False),
    "too few of the old": ([((0, 1, 2, 3, 4), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 4, 5))], False),
    "too few of the new": ([((0, 1, 2, 3, 4), 3, (0, 2, 4)), ((0, 1, 3, 4, 5), 3, (0, 2, 4))], False),
    "raised and not met": ([((1, 2, 3), 1, (1,)), ((1, 2, 3), 2, (2,))], False),
    "lowered by too few": ([((1, 2, 3), 2, (1, 2)), ((1, 2, 3), 1, (1,))], False),
}
KEYS = [CryptoSigner.generate_ecdsa() for _ in range(10)]


@pytest.mark.parametrize("name", ROTATIONS)
def test_root_rotation(tmp_path: Path, name: str) -> None:
    steps, is_accepted = ROTATIONS[name]
    repo = SimulatedRepository()
    for index, (keys, threshold, signing) in enumerate(steps):
        repo.replace_keys("root", [KEYS[key] for key in keys], threshold)
        repo.signers["root"] = [KEYS[key] for key in signing]
        repo.publish("root", version=index + 1)
    with repo.serve() as url:
        client = ConformanceClient(tmp_path, url, repo.served["metadata/1.root.json"])
        assert client.refresh() == (0 if is_accepted else 1)
        last = len(steps) if is_accepted else len(steps) - 1
        assert (client.metadata / "root.json").read_bytes() == repo.served[f"metadata/{last}.root.json"]


ROLE_KEYS = {
    "another key": ((2,), 1, (2,), True),
    "with unknown keys": ((1,), 1, (3, 1, 4), True),
    "any three of five": ((0, 1, 2, 3, 4), 3, (2, 3, 4), True),
    "not by the key": ((2,), 1, (1, 3, 4), False),
    "too few": ((0, 1, 3, 4, 5), 3, (0, 4), False),
    "too few and an unknown key": ((0, 1, 3, 4, 5), 3, (0, 2, 4), False),
}


@pytest.mark.parametrize("name", ROLE_KEYS)
@pytest.mark.parametrize("role", PLAIN)
def test_keys_of_other_roles(repo: SimulatedRepository, client: ConformanceClient, role: str, name: str) -> None:
    keys, threshold, signing, is_accepted = ROLE_KEYS[name]
    repo.replace_keys(role, [KEYS[key] for key in keys], threshold)
    repo.signers[role] = [KEYS[key] for key in signing]
    repo.publish("root", *PLAIN)
    assert client.refresh() == (0 if is_accepted else 1)
    before = TOP_LEVEL_ROLES.index(role)
    assert client.trusted_versions == dict.fromkeys(TOP_LEVEL_ROLES if is_accepted else TOP_LEVEL_ROLES[:before], 2)


@pytest.mark.parametrize(
    ("keytype", "scheme"),
    [
        ("rsa", "rsassa-pss-sha256"),
        ("rsa", "rsa-pkcs1v15-sha256"),
        ("ecdsa", "ecdsa-sha2-nistp256"),
        ("ed25519", "ed25519"),
        ("mldsa", ""),
    ],
)
def test_key_types(repo: SimulatedRepository, client: ConformanceClient, keytype: str, scheme: str) -> None:
    make = getattr(CryptoSigner, f"generate_{keytype}")
    signer = repo.add_signer("root", make(scheme=scheme) if keytype == "rsa" else make())
    repo.root.roles["root"].threshold = 2
    repo.publish("root")
    assert client.refresh() == 0
    repo.publish("root")
    wrong = CryptoSigner.generate_rsa() if keytype == "rsa" else make()
    forged = wrong.sign(b"something else").signature

    def forge(document: dict[str, list[dict[str, str]]]) -> None:
        (entry,) = [entry for entry in document["signatures"] if entry["keyid"] == signer.public_key.keyid]
        entry["sig"] = forged

    repo.damage("root", forge)
    assert client.refresh() == 1
    assert client.trusted_versions["root"] == 2


def test_one_key_counts_once(repo: SimulatedRepository, client: ConformanceClient) -> None:
    signer = repo.add_signer("snapshot")
    repo.root.roles["snapshot"].keyids += [signer.public_key.keyid] * 8
    repo.root.roles["snapshot"].threshold = 6
    for role in ("root", "snapshot", "timestamp"):
        repo.publish(role)
    repo.damage("snapshot", lambda document: document["signatures"].extend([document["signatures"][-1]] * 8))
    assert client.refresh() == 1
    assert "snapshot" not in client.trusted_versions


def test_a_signature_that_is_there_twice_is_refused(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.damage("snapshot", lambda document: document["signatures"].append(document["signatures"][0]))
    assert client.refresh() == 1
    assert "snapshot" not in client.trusted_versions


@pytest.mark.parametrize("signature", ["00", "", "ab" * 70])
def test_an_invalid_signature_beside_enough_valid_ones_does_no_harm(
    repo: SimulatedRepository, client: ConformanceClient, signature: str
) -> None:
    repo.add_signer("timestamp")
    repo.publish("root", "timestamp")

    def spoil(document: dict[str, list[dict[str, str]]]) -> None:
        document["signatures"][0]["sig"] = signature

    repo.damage("timestamp", spoil)
    assert client.refresh() == 0


def test_unknown_fields_are_signed_like_all_others(repo: SimulatedRepository, client: ConformanceClient) -> None:
    signer = repo.add_signer("snapshot")
    signer.public_key.unrecognized_fields.update({"keyid_hash_algorithms": "md5", "extra": {"a": 1}})
    repo.root.unrecognized_fields["custom"] = "value"
    repo.root.roles["root"].unrecognized_fields["another"] = ["value"]
    repo.documents["timestamp"].unrecognized_fields["x-note"] = {"a": [1, None]}
    repo.publish("root", *PLAIN)
    assert client.refresh() == 0
    assert client.trusted_versions == dict.fromkeys(TOP_LEVEL_ROLES, 2)
    repo.publish("root")
    repo.damage("root", lambda document: document["signed"].update(custom="other"))
    assert client.refresh() == 1


# 5.4 to 5.6: what is refused, and what is kept then


@pytest.mark.parametrize("role", TOP_LEVEL_ROLES)
def test_an_unsigned_role_ends_the_refresh_there(
    repo: SimulatedRepository, client: ConformanceClient, role: str
) -> None:
    repo.signers[role] = []
    repo.publish("root", *PLAIN)
    assert client.refresh() == 1
    expected = dict.fromkeys(TOP_LEVEL_ROLES[: TOP_LEVEL_ROLES.index(role)], 2)
    assert client.trusted_versions == (expected or {"root": 1})


@pytest.mark.parametrize("role", ["root", "snapshot", "targets"])
def test_a_version_other_than_the_url_says_is_refused(
    repo: SimulatedRepository, client: ConformanceClient, role: str
) -> None:
    repo.publish("root", *PLAIN)
    genuine = repo.path_of(role)
    repo.publish(role)
    repo.served[genuine] = repo.served.pop(repo.path_of(role))
    assert client.refresh() == 1
    expected = dict.fromkeys(TOP_LEVEL_ROLES[: TOP_LEVEL_ROLES.index(role)], 2)
    assert client.trusted_versions == (expected or {"root": 1})


def test_a_role_of_another_type_is_refused(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.add_signer("snapshot", repo.signers["timestamp"][0])
    repo.documents["snapshot"].meta = {"snapshot.json": MetaFile(1)}
    repo.publish("root", "snapshot")
    repo.served["metadata/timestamp.json"] = repo.served[repo.path_of("snapshot")]
    assert client.refresh() == 1
    assert client.trusted_versions == {"root": 2}


def test_a_timestamp_of_the_same_version_is_not_taken(repo: SimulatedRepository, client: ConformanceClient) -> None:
    assert client.refresh() == 0
    repo.documents["timestamp"].snapshot_meta.version = 100
    repo.publish("timestamp", version=1)
    repo.requested_paths.clear()
    assert client.refresh() == 0
    assert repo.requested_paths == ["metadata/2.root.json", "metadata/timestamp.json"]
    cached: Metadata[Timestamp] = Metadata.from_file(str(client.metadata / "timestamp.json"))
    assert cached.signed.snapshot_meta.version == 1


@pytest.mark.parametrize("with_hashes", [False, True])
@pytest.mark.parametrize("role", PLAIN)
def test_a_rollback_is_refused(
    repo: SimulatedRepository, client: ConformanceClient, role: str, with_hashes: bool
) -> None:
    repo.with_hashes = with_hashes
    repo.publish(*PLAIN)
    repo.publish(*PLAIN)
    assert client.refresh() == 0
    repo.documents[role].version = 1
    repo.publish(role)
    for above in PLAIN[PLAIN.index(role) + 1 :]:
        repo.publish(above)
    assert client.refresh() == 1
    # a newer timestamp that names an older snapshot is refused itself; a newer snapshot is, that names an older targets
    assert client.trusted_versions == {
        "root": 1,
        "timestamp": 4 if role == "targets" else 3,
        "snapshot": 3,
        "targets": 3,
    }


@pytest.mark.parametrize("role", PLAIN)
def test_a_fast_forward_is_healed_by_rotating_keys(
    repo: SimulatedRepository, client: ConformanceClient, role: str
) -> None:
    repo.documents[role].version = 99_998
    repo.publish(*PLAIN[PLAIN.index(role) :])
    assert client.refresh() == 0
    assert client.trusted_versions[role] == 99_999
    rotated = {"targets": ("snapshot",), "snapshot": ("snapshot", "timestamp"), "timestamp": ("timestamp",)}
    for name in rotated[role]:
        repo.replace_keys(name, [CryptoSigner.generate_ecdsa()])
    repo.documents[role].version = 1
    repo.publish("root", *PLAIN)
    assert client.refresh() == 0
    assert client.trusted_versions[role] == 2


def test_wrong_hashes_of_metadata_are_refused(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.with_hashes = True
    repo.publish(*PLAIN)
    assert client.refresh() == 0
    repo.publish("targets")
    repo.documents["snapshot"].meta["targets.json"].hashes["sha256"] = "46" * 32
    repo.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.trusted_versions == {"root": 1, "timestamp": 3, "snapshot": 3, "targets": 2}


@pytest.mark.parametrize("role", PLAIN)
def test_what_is_not_there(repo: SimulatedRepository, client: ConformanceClient, role: str) -> None:
    assert client.refresh() == 0
    repo.publish(*PLAIN)
    del repo.served[repo.path_of(role)]
    assert client.refresh() == 1
    assert client.trusted_versions == {
        name: 2 if name in TOP_LEVEL_ROLES[1 : TOP_LEVEL_ROLES.index(role)] else 1 for name in TOP_LEVEL_ROLES
    }


def test_a_new_targets_that_no_snapshot_names_is_not_asked_for(
    repo: SimulatedRepository, client: ConformanceClient
) -> None:
    assert client.refresh() == 0
    repo.publish("targets")
    assert client.refresh() == 0
    assert repo.requested_paths[-1] == "metadata/timestamp.json"


def test_a_snapshot_that_drops_a_role_is_refused(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.delegate("targets", DelegatedRole("a", [], 1, False, ["*"]))
    repo.publish("a", *PLAIN)
    assert client.refresh() == 0
    del repo.documents["snapshot"].meta["a.json"]
    repo.publish("snapshot", "timestamp")
    assert client.refresh() == 1
    assert client.trusted_versions["snapshot"] == 2


@pytest.mark.parametrize("role", TOP_LEVEL_ROLES)
def test_expired_metadata_ends_the_refresh_there(
    repo: SimulatedRepository, client: ConformanceClient, role: str
) -> None:
    assert client.refresh() == 0
    repo.documents[role].expires = in_days(-5)
    repo.publish("root", *PLAIN)
    assert client.refresh() == 1
    # an expired root is kept: it may be the way to a newer one
    new = TOP_LEVEL_ROLES[: max(1, TOP_LEVEL_ROLES.index(role))]
    assert client.trusted_versions == {name: 2 if name in new else 1 for name in TOP_LEVEL_ROLES}


def test_expired_cached_metadata_is_replaced(
    repo: SimulatedRepository, client: ConformanceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.documents["timestamp"].expires = in_days(7)
    repo.publish("timestamp")
    assert client.refresh() == 0
    repo.documents["timestamp"].expires = in_days(21)
    repo.publish(*PLAIN)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 18 * DAY_S)
    assert client.refresh() == 0
    assert client.trusted_versions == {"root": 1, "timestamp": 3, "snapshot": 2, "targets": 2}
    monkeypatch.setattr(time, "time", lambda: now + 22 * DAY_S)
    assert client.refresh() == 1


def test_the_clock_is_the_one_that_faketime_gives(repo: SimulatedRepository, client: ConformanceClient) -> None:
    if shutil.which("faketime") is None:
        pytest.skip("faketime is not installed")
    repo.root.expires = in_days(7)
    repo.publish("root")
    assert client.refresh() == 0
    module = [sys.executable, "-m", "device_agent.workers.tuf_conformance", "--metadata-dir", str(client.metadata)]
    for days, status in ((6, 0), (8, 1)):
        words = ["faketime", str(in_days(days)), *module, *client.refresh_arguments()]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stderr
    assert done.stderr.startswith("MetadataExpired: ")


@pytest.mark.parametrize("role", TOP_LEVEL_ROLES)
@pytest.mark.parametrize(
    "noise",
    [b"", b"null", b"[1, 2]", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"1" * 6000, b'{"signed": {}}'],
    ids=["empty", "null", "list", "not text", "lists in lists", "objects in objects", "digits", "hollow"],
)
def test_noise_in_place_of_metadata_is_refused(
    repo: SimulatedRepository, client: ConformanceClient, role: str, noise: bytes
) -> None:
    if role == "root":
        repo.publish("root")
    repo.served[repo.path_of(role)] = noise
    assert client.refresh() == 1
    assert client.trusted_versions == (dict.fromkeys(TOP_LEVEL_ROLES[: TOP_LEVEL_ROLES.index(role)], 1) or {"root": 1})


# 5.6.7: delegations

# (delegator, role, terminating, paths) … and the order in which "wanted" is looked for
GRAPHS = {
    "one": ([("targets", "A", False, "*")], "A"),
    "two": ([("targets", "A", False, "*"), ("targets", "B", False, "*")], "AB"),
    "depth first": (
        [("targets", "A", False, "*"), ("targets", "B", False, "*"), ("A", "C", False, "*"), ("A", "D", False, "*")],
        "ACDB",
    ),
    "a deeper one": (
        [("targets", "A", False, "*"), ("targets", "B", False, "*"), ("A", "C", False, "*"), ("C", "D", False, "*")],
        "ACDB",
    ),
    "terminating": (
        [("targets", "A", False, "*"), ("targets", "B", False, "*"), ("A", "C", True, "*"), ("A", "D", False, "*")],
        "AC",
    ),
    "terminating, with its own delegation": (
        [("targets", "A", False, "*"), ("targets", "B", False, "*"), ("A", "C", True, "*"), ("C", "D", False, "*")],
        "ACD",
    ),
    "other paths": (
        [("targets", "A", False, "*.py"), ("targets", "B", False, "*"), ("A", "C", False, "*")],
        "B",
    ),
    "a circle": (
        [("targets", "B", False, "*"), ("B", "C", False, "*"), ("C", "D", False, "*"), ("D", "B", False, "*")],
        "BCD",
    ),
    "itself": ([("targets", "A", False, "*"), ("A", "A", False, "*")], "A"),
    "a path that is no star": ([("targets", "A", False, "want??"), ("targets", "B", False, "?anted")], "AB"),
    "folders": ([("targets", "A", False, "*/*"), ("targets", "B", False, "*")], "B"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_delegations_are_walked_in_order(repo: SimulatedRepository, client: ConformanceClient, name: str) -> None:
    edges, order = GRAPHS[name]
    for delegator, role, is_terminating, path in edges:
        signer = repo.signers[role][0] if role in repo.signers else None
        repo.delegate(delegator, DelegatedRole(role, [], 1, is_terminating, [path]), signer)
    roles = [role for _, role, _, _ in edges]
    repo.publish(*roles, *PLAIN)
    assert client.download("wanted") == 1
    versions = {role: repo.documents[role].version for role in roles}
    assert repo.requested_paths[4:] == [f"metadata/{versions[role]}.{role}.json" for role in order]
    assert client.trusted_versions.keys() == {*TOP_LEVEL_ROLES, *order}


@pytest.mark.parametrize(
    ("target", "order"), [("own", ""), ("README.md", "A"), ("x/y/v1", "BC"), ("x/z/v1.zip", "BD"), ("x/q/v1.zip", None)]
)
def test_a_target_is_found_only_by_a_chain_that_delegates_it(
    repo: SimulatedRepository, client: ConformanceClient, target: str, order: str | None
) -> None:
    repo.delegate("targets", DelegatedRole("A", [], 1, False, ["*.doc", "*.md"]))
    repo.delegate("targets", DelegatedRole("B", [], 1, False, ["x/*/*"]))
    repo.delegate("B", DelegatedRole("C", [], 1, False, ["x/y/*"]))
    repo.delegate("B", DelegatedRole("D", [], 1, False, ["x/z/*.zip"]))
    lists = [("targets", "own"), ("A", "README.md"), ("C", "x/y/v1"), ("D", "x/z/v1.zip"), ("D", "x/q/v1.zip")]
    for role, name in lists:
        repo.add_target(name, f"{name} by {role}".encode(), role)
    repo.publish("A", "B", "C", "D", *PLAIN)
    status = client.download(target)
    if order is None:
        assert (status, client.downloaded) == (1, [])
    else:
        assert status == 0
        assert len(client.downloaded) == 1
        versions = {role: repo.documents[role].version for role in "ABCD"}
        assert repo.requested_paths[4:-1] == [f"metadata/{versions[role]}.{role}.json" for role in order]


@pytest.mark.parametrize(("bits", "target"), [(1, "a"), (5, "some/path"), (8, "bar")])
def test_hash_bins_lead_to_one_bin(
    repo: SimulatedRepository, client: ConformanceClient, bits: int, target: str
) -> None:
    names = repo.delegate_bins(bits, "bin")
    delegations = repo.targets().delegations
    assert delegations is not None
    assert delegations.succinct_roles is not None
    name = delegations.succinct_roles.get_role_for_target(target)
    repo.add_target(target, b"in a bin", name)
    repo.publish(*names, *PLAIN)
    assert client.download(target) == 0
    assert client.downloaded == [b"in a bin"]
    assert client.trusted_versions.keys() == {*TOP_LEVEL_ROLES, name}


def test_a_role_reached_by_two_ways_must_verify_on_each(repo: SimulatedRepository, client: ConformanceClient) -> None:
    for role in "AB":
        repo.delegate("targets", DelegatedRole(role, [], 1, True, [f"{role}/*"]))
    repo.delegate("A", DelegatedRole("C", [], 1, False, ["*/*"]))
    of_b = repo.delegate("B", DelegatedRole("C", [], 1, False, ["*/*"]))
    for name in ("A/x", "B/x"):
        repo.add_target(name, name.encode(), "C")
    repo.publish("C", "A", "B", *PLAIN)
    assert client.download("A/x", "B/x") == 1
    assert client.downloaded == [b"A/x"]
    assert client.download("B/x") == 1
    repo.signers["C"].append(of_b)
    repo.publish("C", *PLAIN)
    assert client.download("A/x", "B/x") == 0
    assert sorted(client.downloaded) == [b"A/x", b"B/x"]


def test_expired_delegated_roles_are_not_used(
    repo: SimulatedRepository, client: ConformanceClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.delegate("targets", DelegatedRole("a", [], 1, False, ["*"]))
    repo.add_target("first", b"first", "a")
    repo.add_target("second", b"second", "a")
    repo.documents["a"].expires = in_days(-1)
    repo.publish("a", *PLAIN)
    assert client.refresh() == 0
    assert client.download("first") == 1
    assert client.downloaded == []
    assert client.trusted_versions == {"root": 1, "timestamp": 2, "snapshot": 2, "targets": 2}
    repo.documents["a"].expires = in_days(7)
    repo.publish("a", *PLAIN)
    assert client.download("first") == 0
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 18 * DAY_S)
    assert client.download("second") == 1
    repo.documents["a"].expires = in_days(21)
    repo.publish("a", *PLAIN)
    assert client.download("second") == 0
    assert client.downloaded == [b"first", b"second"]


@pytest.mark.parametrize("role", ["?", "#", "/a", "../a", "..", ".", "a b", "ü", "%2F", "a.b"])
@pytest.mark.parametrize("is_consistent", [True, False])
def test_odd_role_names_stay_in_their_folder(tmp_path: Path, role: str, is_consistent: bool) -> None:
    repo = SimulatedRepository()
    repo.root.consistent_snapshot = is_consistent
    repo.delegate("targets", DelegatedRole(role, [], 1, False, ["*"]))
    repo.publish("root", role, *PLAIN)
    with repo.serve() as url:
        client = ConformanceClient(tmp_path, url, repo.served["metadata/1.root.json"])
        prefix = f"{repo.documents[role].version}." if is_consistent else ""
        quoted = f"metadata/{prefix}{quote(role, '')}.json"
        repo.served[quoted] = repo.served[repo.path_of(role)]
        assert client.download("nothing of that name") == 1
        assert repo.requested_paths[-1] == quoted
        assert len(client.trusted_versions) == 5
        assert {path.name for path in tmp_path.iterdir()} == {"metadata", "targets", "root.json"}


def test_a_repository_without_consistent_snapshots(tmp_path: Path) -> None:
    repo = SimulatedRepository()
    repo.root.consistent_snapshot = False
    repo.add_target("a/b", b"content")
    repo.publish("root", *PLAIN)
    with repo.serve() as url:
        client = ConformanceClient(tmp_path, url, repo.served["metadata/1.root.json"])
        assert client.download("a/b") == 0
        roles = ("2.root", "3.root", "timestamp", "snapshot", "targets")
        assert repo.requested_paths == [*(f"metadata/{role}.json" for role in roles), "targets/a/b"]
        assert client.downloaded == [b"content"]


# 5.7: targets


@pytest.mark.parametrize("hashes", [("sha256",), ("sha512",), ("sha256", "sha512")])
@pytest.mark.parametrize("name", ["file.txt", "path/to/a/file.txt", "a b", "ü", "a%20b", "/a", "x//y"])
def test_targets_are_stored_below_their_folder(
    repo: SimulatedRepository, client: ConformanceClient, hashes: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    repo.add_target(name, b"content", hashes=hashes)
    repo.publish(*PLAIN)
    assert client.download(name) == 0
    assert client.downloaded == [b"content"]
    assert {path.name for path in tmp_path.iterdir()} == {"metadata", "targets", "root.json"}


def test_a_target_whose_name_is_no_file_name_is_not_stored(
    repo: SimulatedRepository, client: ConformanceClient, tmp_path: Path
) -> None:
    for name in ("..", ".", ""):
        repo.add_target(name, b"content")
        repo.publish(*PLAIN)
        assert client.download(name) == 1
    assert client.downloaded == []
    assert {path.name for path in tmp_path.iterdir()} == {"metadata", "targets", "root.json"}


def test_an_unknown_hash_is_not_enough(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.add_target("file", b"content", hashes=("sha512",))
    target = repo.targets().targets["file"]
    target.hashes = {"unknown-hash": target.hashes["sha512"]}
    repo.publish(*PLAIN)
    assert client.download("file") == 1
    assert client.downloaded == []


def test_what_is_here_is_not_fetched_again_and_what_changed_is(
    repo: SimulatedRepository, client: ConformanceClient
) -> None:
    repo.add_target("file", b"first")
    repo.publish(*PLAIN)
    assert client.download("file") == 0
    target_arguments = sum(path.startswith("targets/") for path in repo.requested_paths)
    assert client.download("file") == 0
    assert sum(path.startswith("targets/") for path in repo.requested_paths) == target_arguments
    repo.add_target("file", b"second")
    repo.publish(*PLAIN)
    assert client.download("file") == 0
    assert client.downloaded == [b"second"]


@pytest.mark.parametrize("content", [b"longer than the one", b"short", b"another content"])
def test_another_content_is_not_stored(repo: SimulatedRepository, client: ConformanceClient, content: bytes) -> None:
    repo.add_target("file", b"genuine content")
    repo.publish(*PLAIN)
    for path in list(repo.served):
        if path.startswith("targets/"):
            repo.served[path] = content
    assert client.download("file") == 1
    assert client.downloaded == []


def test_a_wrong_length_is_not_stored(repo: SimulatedRepository, client: ConformanceClient) -> None:
    repo.add_target("file", b"content")
    target = repo.targets().targets["file"]
    repo.targets().targets["file"] = TargetFile(len(b"content") - 1, target.hashes, "file")
    repo.publish(*PLAIN)
    assert client.download("file") == 1
    assert client.downloaded == []


def test_it_works_from_anywhere_and_says_why_in_one_line(
    repo: SimulatedRepository, client: ConformanceClient, tmp_path: Path
) -> None:
    module = [sys.executable, "-m", "device_agent.workers.tuf_conformance", "--metadata-dir", str(client.metadata)]
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [*module, *client.refresh_arguments()],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    repo.served["metadata/timestamp.json"] = b"{" * 10_000
    done = subprocess.run(
        [*module, *client.refresh_arguments()], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Malformed: ")
    assert done.stderr.count("\n") == 1
