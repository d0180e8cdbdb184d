"""tuf-js, an independent JavaScript client, reads a classical repository and refuses changed files."""

import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner, Signer

from bundle.fleet import Fleet
from bundle.trust.role_names import release_target, rollout_target
from keys.cohorts import create_next_epoch
from keys.key_files import generate_key_file, load_signer
from keys.registry import Registry
from packager.repository.creation import all_roles, create_repository
from packager.repository.role_changes import replace_key
from tests.support.metadata_publisher import CHANNEL, FAMILY, PASSPHRASE, MetadataPublisher, make_rollout, start_server

VERSIONS = (((22, 9), "5.0.1"), ((20, 17), "5.0.1"), ((18, 17), "3.1.0"))  # newest release for a node of at least …
CLIENT = Path(__file__).parents[1] / "support" / "tuf_js_client.cjs"


def node_version() -> tuple[int, int]:
    if shutil.which("node") is None or shutil.which("npm") is None:
        return (0, 0)
    version_text = subprocess.run(["node", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.match(r"v(\d+)\.(\d+)", version_text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@pytest.fixture(scope="module")
def modules(pytestconfig: pytest.Config) -> Path:
    """Return the directory of node modules with tuf-js; it is kept between test runs."""
    node = node_version()
    version = next((version for least, version in VERSIONS if node >= least), None)
    if version is None:
        pytest.skip("node 18.17 or newer with npm is not installed: tuf-js is not run")
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir(f"tuf-js-{version}")
    if not (folder / "node_modules" / "tuf-js").is_dir():
        words = ["npm", "install", "--prefix", os.fspath(folder), "--ignore-scripts", "--no-audit", "--no-fund"]
        words.append(
            "--fetch-retries=1"
        )  # an unreachable registry fails within seconds; by default npm retries for minutes
        done = subprocess.run([*words, f"tuf-js@{version}"], capture_output=True, text=True, check=False, timeout=120)
        if done.returncode:
            pytest.skip(f"tuf-js {version} could not be installed by npm: {done.stderr.strip()[-200:]}")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def classical(tmp_path_factory: pytest.TempPathFactory) -> MetadataPublisher:
    """Return a classical repository with Ed25519 and P-256 keys in every role, a release and a rotated root."""
    folder = tmp_path_factory.mktemp("classical")

    def group(role: str) -> list[Signer]:
        out: list[Signer] = []
        for algorithm in ("ed25519", "ecdsa-p256", "ed25519")[: 3 if role in ("root", "targets") else 2]:
            path = folder / "keys" / f"{role}-{len(out)}.key"
            generate_key_file(path, algorithm, PASSPHRASE)
            out.append(load_signer(path, PASSPHRASE))
        return out

    signers = {role: group(role) for role in all_roles([FAMILY])}
    repository = create_repository(folder / "repository", signers=signers, families=[FAMILY], classical=True)
    publisher = MetadataPublisher(folder, [signer for role in signers.values() for signer in role])
    cohort = create_next_epoch(folder / "keys", "default", None, PASSPHRASE)
    repository.stage_fleet(Fleet(Registry(repository.registry_path).digest(), 0, (cohort,)))
    publisher.release("1.0.0", 1)
    fresh = CryptoSigner.generate_ecdsa()
    replace_key(repository.layout, "root", signers["root"][0].public_key.keyid, fresh.public_key)
    publisher.signers.append(fresh)
    publisher.publish()
    return publisher


def read(
    publisher: MetadataPublisher, published: Path, modules: Path, folder: Path, *names: str
) -> subprocess.CompletedProcess[str]:
    (folder / "metadata").mkdir(parents=True)
    shutil.copy(publisher.published / "metadata" / "1.root.json", folder / "metadata" / "root.json")
    url, stop = start_server(published)
    try:
        return subprocess.run(
            ["node", os.fspath(CLIENT), url, os.fspath(folder), *names],
            env={**os.environ, "NODE_PATH": os.fspath(modules)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        stop()


def test_tuf_js_reads_manifest_and_rollout_over_a_rotated_root(
    classical: MetadataPublisher, modules: Path, tmp_path: Path
) -> None:
    manifest = classical.repository.manifest(FAMILY, "1.0.0")
    assert manifest is not None
    names = (release_target(FAMILY, "1.0.0"), rollout_target(FAMILY, CHANNEL), release_target(FAMILY, "9.9.9"))
    done = read(classical, classical.published, modules, tmp_path / "client", *names)
    assert done.returncode == 0, done.stderr
    expected = [manifest.as_bytes(), make_rollout(manifest).as_bytes()]
    assert json.loads(done.stdout) == {
        **{name: hashlib.sha256(data).hexdigest() for name, data in zip(names, expected, strict=False)},
        names[2]: None,
    }


@pytest.mark.parametrize("pattern", ["metadata/timestamp.json", "metadata/*.snapshot.json", "targets/bundles/*/*.json"])
def test_tuf_js_refuses_what_was_changed(
    classical: MetadataPublisher, modules: Path, tmp_path: Path, pattern: str
) -> None:
    mirror = Path(shutil.copytree(classical.published, tmp_path / "mirror"))
    for path in mirror.glob(pattern):
        path.write_bytes(path.read_bytes().replace(b"20", b"21", 1).replace(b'"1.0.0"', b'"6.0.0"', 1))
    done = read(classical, mirror, modules, tmp_path / "client", release_target(FAMILY, "1.0.0"))
    assert done.returncode == 1, done.stdout
    assert "Error" in done.stderr
