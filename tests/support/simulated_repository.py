"""A TUF repository of single keys, of any shape, on loopback: for what the specification allows and ours never makes.

`publish` signs and serves what `documents` holds; a test changes those documents first, and damages `served` after.
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
    """An expiry."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class SimulatedRepository:
    """One repository, published once.

    Attributes:
        documents: role → what the next `publish` signs.
        signers: role → who signs it.
        served: path below the repository's address → bytes.
        asked: paths in the order that they were asked for.
        with_hashes: whether snapshot and timestamp name lengths and hashes.
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
        """The document of a targets role."""
        document: Targets = self.documents[role]
        return document

    def add_signer(self, role: str, signer: CryptoSigner | None = None) -> CryptoSigner:
        """One more key of a top-level role."""
        signer = signer or CryptoSigner.generate_ecdsa()
        self.root.add_key(signer.public_key, role)
        self.signers.setdefault(role, []).append(signer)
        return signer

    def replace_keys(self, role: str, signers: list[CryptoSigner], threshold: int = 1) -> None:
        """These keys, and no others."""
        for keyid in list(self.root.roles[role].keyids):
            self.root.revoke_key(keyid, role)
        self.root.roles[role].threshold = threshold
        self.signers[role] = []
        for signer in signers:
            self.add_signer(role, signer)

    def delegate(self, delegator: str, role: DelegatedRole, signer: CryptoSigner | None = None) -> CryptoSigner:
        """`delegator` trusts a key of `role`; the role's document is made where there is none."""
        signer = signer or CryptoSigner.generate_ecdsa()
        holder = self.targets(delegator)
        if holder.delegations is None:
            holder.delegations = Delegations({}, roles={})
        assert holder.delegations.roles is not None
        holder.delegations.roles[role.name] = role
        holder.add_key(signer.public_key, role.name)
        if role.name not in self.documents:
            self.documents[role.name] = Targets(expires=in_days(30))
            self.signers[role.name] = [signer]
        return signer

    def delegate_bins(self, bits: int, prefix: str) -> list[str]:
        """Hash bins below targets; their names."""
        bins = SuccinctRoles([], 1, bits, prefix)
        signer = CryptoSigner.generate_ecdsa()
        self.targets().delegations = Delegations({}, None, bins)
        self.targets().add_key(signer.public_key)
        names = list(bins.get_roles())
        for name in names:
            self.documents[name], self.signers[name] = Targets(expires=in_days(30)), [signer]
        return names

    def add_target(self, name: str, data: bytes, role: str = "targets", hashes: tuple[str, ...] = ("sha256",)) -> None:
        """A role lists a target, and it is served."""
        target = TargetFile.from_data(name, data, list(hashes))
        self.targets(role).targets[name] = target
        folder, slash, base = name.rpartition("/")
        for digest in target.hashes.values():
            self.served[f"targets/{folder}{slash}{digest}.{base}"] = data
        self.served[f"targets/{name}"] = data

    def publish(self, *roles: str, version: int | None = None) -> None:
        """Sign and serve these roles, each one version on (or at `version`), in this order: root, the targets roles,
        snapshot, timestamp."""
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
        """Where a role's document is served."""
        if role == "timestamp":
            return "metadata/timestamp.json"
        return f"metadata/{self.documents[role].version if version is None else version}.{role}.json"

    def damage(self, role: str, change: Any) -> None:
        """Damage the served document: `change` gets its JSON object. The signatures stay as they are."""
        import json

        document = json.loads(self.served[self.path_of(role)])
        change(document)
        self.served[self.path_of(role)] = json.dumps(document).encode()

    @contextmanager
    def serve(self) -> Iterator[str]:
        """On loopback; yields its address."""
        repository = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.lstrip("/")
                repository.requested_paths.append(path)
                found = repository.served.get(path, repository.served.get(unquote(path)))
                self.send_response(404 if found is None else 200)
                self.send_header("Content-Length", str(len(found or b"")))
                self.end_headers()
                self.wfile.write(found or b"")

            def log_message(self, *words: Any) -> None:
                """Silence."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
