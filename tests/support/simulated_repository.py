"""A TUF repository on loopback for metadata that the specification allows and that our publisher never creates.

`publish` signs the metadata in `documents` and puts it into `served`. A test changes `documents` before `publish`, or
damages `served` after it.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    SuccinctRoles,
    TargetFile,
    Targets,
    Timestamp,
)

TOP_LEVEL_ROLES = ("root", "timestamp", "snapshot", "targets")


def in_days(days: int) -> datetime:
    """Return the time in so many days, as an expiry."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class SimulatedRepository:
    """A repository with one key per role; version 1 is published.

    Attributes:
        documents: metadata by role, which the next `publish` signs.
        signers: keys by role.
        served: content by path below the repository's address.
        asked: paths in the order that they were asked for.
        with_hashes: whether snapshot and timestamp contain lengths and hashes.
    """

    def __init__(self) -> None:
        self.documents: dict[str, Any] = {
            "root": Root(expires=in_days(30), consistent_snapshot=True),
            "timestamp": Timestamp(expires=in_days(30)),
            "snapshot": Snapshot(expires=in_days(30)),
            "targets": Targets(expires=in_days(30)),
        }
        self.signers: dict[str, list[CryptoSigner]] = {}
        self.served: dict[str, bytes] = {}
        self.requested_paths: list[str] = []
        self.with_hashes = False
        for role in TOP_LEVEL_ROLES:
            self.add_signer(role)
        self.publish(*TOP_LEVEL_ROLES, version=1)

    @property
    def root(self) -> Root:
        document: Root = self.documents["root"]
        return document

    def targets(self, role: str = "targets") -> Targets:
        """Return the metadata of a targets role."""
        document: Targets = self.documents[role]
        return document

    def add_signer(self, role: str, signer: CryptoSigner | None = None) -> CryptoSigner:
        """Add a key to a top-level role; generate it if it is None."""
        signer = signer or CryptoSigner.generate_ecdsa()
        self.root.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def replace_keys(self, role: str, signers: list[CryptoSigner], threshold: int = 1) -> None:
        """Replace the keys of a top-level role."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = []
        for signer in signers:
            self.add_signer(role, signer)

    def delegate(self, delegator: str, role: DelegatedRole, signer: CryptoSigner | None = None) -> CryptoSigner:
        """Delegate a role with one key; create the role's metadata if it does not exist."""
        signer = signer or CryptoSigner.generate_ecdsa()
        delegating = self.targets(delegator)
        if delegating.delegations is None:
            delegating.delegations = Delegations({}, roles={})
        assert delegating.delegations.roles is not None
        delegating.delegations.roles[role.name] = role
        delegating.add_key(signer.public_key, role.name)
        if role.name not in self.documents:
            self.documents[role.name] = Targets(expires=in_days(30))
            self.signers[role.name] = [signer]
        return signer

    def delegate_bins(self, bits: int, prefix: str) -> list[str]:
        """Delegate from targets to hash bins, and return their names."""
        bins = SuccinctRoles([], 1, bits, prefix)
        signer = CryptoSigner.generate_ecdsa()
        self.targets().delegations = Delegations({}, None, bins)
        self.targets().add_key(signer.public_key)
        names = list(bins.get_roles())
        for name in names:
            self.documents[name], self.signers[name] = Targets(expires=in_days(30)), [signer]
        return names

    def add_target(self, name: str, data: bytes, role: str = "targets", hashes: tuple[str, ...] = ("sha256",)) -> None:
        """List a target in a role's metadata and serve it."""
        target = TargetFile.from_data(name, data, list(hashes))
        self.targets(role).targets[name] = target
        folder, slash, base = name.rpartition("/")
        for digest in target.hashes.values():
            self.served[f"targets/{folder}{slash}{digest}.{base}"] = data
        self.served[f"targets/{name}"] = data

    def publish(self, *roles: str, version: int | None = None) -> None:
        """Sign and serve roles, each with the next version or with `version`.

        The order is root, delegated roles, targets, snapshot, timestamp.
        """
        delegated = [role for role in roles if role not in TOP_LEVEL_ROLES]
        for role in [name for name in ("root", *delegated, "targets", "snapshot", "timestamp") if name in roles]:
            document = self.documents[role]
            document.version = document.version + 1 if version is None else version
            signed: Metadata[Any] = Metadata(document)
            for signer in self.signers[role]:
                signed.sign(signer, append=True)
            data = signed.to_bytes()
            self.served[self.path_of(role)] = data
            if not self.root.consistent_snapshot:
                self.served[f"metadata/{role}.json"] = data
            entry = MetaFile.from_data(document.version, data, ["sha256"])
            if not self.with_hashes:
                entry = MetaFile(document.version)
            if role == "snapshot":
                self.documents["timestamp"].snapshot_meta = entry
            elif role not in ("root", "timestamp"):
                self.documents["snapshot"].meta[f"{role}.json"] = entry

    def path_of(self, role: str, version: int | None = None) -> str:
        """Return the served path of a role's metadata, of its current version by default."""
        if role == "timestamp":
            return "metadata/timestamp.json"
        return f"metadata/{self.documents[role].version if version is None else version}.{role}.json"

    def damage(self, role: str, change: Any) -> None:
        """Change the JSON object of the served metadata by `change`, and keep its signatures."""
        import json

        document = json.loads(self.served[self.path_of(role)])
        change(document)
        self.served[self.path_of(role)] = json.dumps(document).encode()

    @contextmanager
    def serve(self) -> Iterator[str]:
        """Serve the repository on loopback until the block ends; yield its URL."""
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                if not path.endswith(".awz"):
                    repository.requested_paths.append(path)
                found = repository.served.get(path, repository.served.get(unquote(path)))
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                self.wfile.write(found or b"")

            def log_message(self, *words: Any) -> None:
                """Do not log."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
