"""The patcher: the only worker with the device's keys; it applies patches, seals and unseals.

It gets everything as descriptors, has no network and opens no file. Keys are read here and never sent.
The decoder of patches is imported only if the policy asks for it: numpy takes half of the start.

Calls (descriptors in their order):
- `unlock` (device key): open the envelopes and check the content key against the manifest's commitment.
- `apply` (storage key, blob, outputs, and the base's files if the patch has a base): decrypt the blob while its
  ciphertext is hashed again, apply the patch, write the result in the form that the outputs have.
- `convert` (storage key, outputs, files of a bundle): write a bundle in its other form.
- `check` (storage key, files of a bundle): compare the digests of the requested files.
- `unseal` (storage key, files of a bundle): one sealed memfd for each requested file.
- `seal-adapter` (storage key, adapter, golden outputs, output): seal a personal adapter into one file.
- `unseal-adapter` (storage key, sealed file): the adapter and its golden outputs.
- `seal-client-key`, `unseal-client-key`: device_agent.workers.sealed_client_key.
- `sign` (signing key): device_agent.workers.line_signer.
- `describe` (storage key, files of a bundle): read all of a bundle and return its head.

A bundle has one file if it is sealed, and several if it is plain (device_agent.storage.bundle_store).
"""

import hashlib
import importlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

# cryptography loads it at its first use, when the jail has closed the files
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

from bundle.envelope import (
    COHORT_KEY_PURPOSE,
    CONTENT_KEY_PURPOSE,
    EnvelopeContext,
    check_commitment,
    derive_public_key,
    open_envelope,
)
from bundle.errors import DigestMismatch, PatchRefused, Refused, TooLarge
from bundle.files import BundleDigest, bundle_digest
from bundle.frames import BLOB_LABEL, FrameContext, FrameReader, FrameWriter, Secret
from bundle.manifest import Manifest, parse_manifest
from bundle.strict_json import StrictObject
from bundle.variant import PatchEntry, Variant
from device_agent.errors import CohortKeyMismatch, StoreDamaged
from device_agent.identity.device_keys import read_key
from device_agent.process.channel import MAX_FDS, JsonObject, Message
from device_agent.process.jail import JailPolicy
from device_agent.process.throttle import Throttle
from device_agent.process.worker import Handler, SupervisorChannel, serve_calls, start_worker
from device_agent.runtime.bundle_fds import create_sealed_memfd
from device_agent.storage.device_directory import DEVICE_KEY, STORAGE_KEY
from device_agent.workers.line_signer import sign_lines
from device_agent.workers.plain_bundle import PlainBundle, copy_bundle, open_stored_bundle, open_writer
from device_agent.workers.sealed_bundle import SealedHead
from device_agent.workers.sealed_client_key import seal_client_key, unseal_client_key

# bundle.patch imports them at their first use. Some builds of Python lack lzma, and pcodec is not installed on every
# platform: then the planner chooses no patch that needs it.
CODECS: Final = ("lzma", "pcodec.standalone")
READ_BYTES: Final = 1 << 20
MAX_ADAPTER_BYTES: Final = 1 << 30
ADAPTER_LABEL: Final = "airweights adapter v1"


class _HashedFile:
    """Reads a descriptor forward and hashes the bytes: the blob may have changed since it was downloaded."""

    def __init__(self, fd: int) -> None:
        self._fd, self._offset, self._hash = fd, 0, hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        parts = []
        while size:
            data = os.pread(self._fd, min(size, READ_BYTES), self._offset)
            if not data:
                break
            self._hash.update(data)
            self._offset += len(data)
            size -= len(data)
            parts.append(data)
        return b"".join(parts)

    def check(self, sha256: str) -> None:
        """Read to the end and compare the SHA-256."""
        while self.read(READ_BYTES):
            pass
        if self._hash.hexdigest() != sha256:
            raise DigestMismatch(f"blob {sha256[:16]}: the spooled file has SHA-256 {self._hash.hexdigest()[:16]}")


class Patcher:
    """The calls `unlock` and `apply`, with the content keys by bundle digest, in memory only."""

    def __init__(self) -> None:
        self._content_keys: dict[BundleDigest, Secret] = {}

    def load_content_key(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Open the envelopes of a release: call `unlock`. Keys and envelopes are hexadecimal.

        Args:
            message: fields `manifest`, `variant`, `counter_epoch`, `repository`, `cohort`, `epoch`,
                `cohort_public_key`, `cohort_envelope`, `content_envelope`.

        Raises:
            Refused: an envelope does not open or has another key. Envelopes are not signed, so this may be the mirror's
                fault and not the release's.
        """
        try:
            (device_fd,) = message.fds
            manifest, variant = _parse_release(message.value)
            self._content_keys[variant.digest] = _open_content_key(
                message.value, read_key(device_fd, DEVICE_KEY), manifest, variant
            )
            return {}
        finally:
            message.close()

    def apply_patch(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Apply a patch and write the result: call `apply`.

        Args:
            message: fields `manifest`, `variant`, `counter_epoch`, `patch` (the manifest's entry), `outputs` (number of
                descriptors).

        Raises:
            PatchRefused: the patch does not apply (bundle.patch).
            DigestMismatch: the blob or the result does not have the signed digest.
            StoreDamaged: the base does not open.
        """
        from bundle.patch.apply import apply_patch
        from bundle.patch.limits import PatchLimits

        value = message.value
        storage_fd, blob_fd, *others = message.fds
        outputs, base_fds = others[: value["outputs"]], others[value["outputs"] :]
        try:
            manifest, variant = _parse_release(value)
            head = SealedHead(value["manifest"], value["variant"], value["counter_epoch"])
            entry = PatchEntry.parse(StrictObject(value["patch"], "patch entry"))
            storage_key = read_key(storage_fd, STORAGE_KEY)
            context = FrameContext(BLOB_LABEL, manifest.family, manifest.counter, head.variant)
            base = None if entry.base is None else open_stored_bundle(base_fds, storage_key, entry.base)
            blob = _HashedFile(blob_fd)
            with open_writer(outputs, storage_key, head) as writer:
                try:
                    source = FrameReader(blob, self._content_keys[variant.digest], context)
                    files = apply_patch(source, base, writer, PatchLimits(memory_bytes=entry.peak_memory))
                except PatchRefused:
                    blob.check(entry.blob)
                    if isinstance(base, PlainBundle):
                        base.check_files()  # a plain base has no authenticated frames: the fault may be its own
                    raise
                finally:
                    # raised first: a blob that is not the signed one explains every other error
                    blob.check(entry.blob)
                if bundle_digest(files) != variant.digest:
                    raise DigestMismatch(
                        f"the patch makes bundle {bundle_digest(files)[:16]}, the manifest says {variant.digest[:16]}"
                    )
                writer.close()
            return {"stored_bytes": _sync_outputs(outputs)}
        finally:
            message.close()


def convert_bundle(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Write a bundle in its other form: call `convert`.

    Args:
        message: fields `digest`, `outputs` (number of descriptors), and those of the release for the new head.

    Raises:
        StoreDamaged: the bundle does not open.
    """
    value = message.value
    storage_fd, *others = message.fds
    try:
        storage_key = read_key(storage_fd, STORAGE_KEY)
        base = open_stored_bundle(others[value["outputs"] :], storage_key, BundleDigest(value["digest"]))
        head = SealedHead(value["manifest"], value["variant"], value["counter_epoch"])
        outputs = others[: value["outputs"]]
        with open_writer(outputs, storage_key, head) as writer:
            copy_bundle(base, writer)
        return {"stored_bytes": _sync_outputs(outputs)}
    finally:
        message.close()


def check_files(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Compare the digests of some files of a bundle: call `check`.

    Args:
        message: fields `digest` and `paths`.

    Raises:
        StoreDamaged: a file was changed.
    """
    storage_fd, *bundle_fds = message.fds
    try:
        digest = BundleDigest(message.value["digest"])
        open_stored_bundle(bundle_fds, read_key(storage_fd, STORAGE_KEY), digest).check_files(message.value["paths"])
        return {}
    finally:
        message.close()


def unseal_bundle(_supervisor: SupervisorChannel, message: Message) -> Message:
    """Unseal the files with the given roles or paths, in table order: call `unseal`.

    Args:
        message: field `digest`, and `roles` or `paths`.

    Raises:
        StoreDamaged: the sealed bundle does not open.
        TooLarge: more files than one message can carry.
    """
    fds: list[int] = []
    try:
        storage_fd, *bundle_fds = message.fds
        digest = BundleDigest(message.value["digest"])
        bundle = open_stored_bundle(bundle_fds, read_key(storage_fd, STORAGE_KEY), digest)
        roles, paths = message.value.get("roles", ()), set(message.value.get("paths", ()))
        requested = [index for index, file in enumerate(bundle.files) if file.role in roles or file.path in paths]
        if len(requested) > MAX_FDS:
            raise TooLarge(f"bundle with {len(requested)} files to load, at most {MAX_FDS} are supported")
        fds.extend(bundle.unseal_file(index) for index in requested)
        return Message({"paths": [bundle.files[index].path for index in requested]}, tuple(fds))
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    finally:
        message.close()


def read_sealed_header(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Read all of a sealed bundle and return its head: call `describe`.

    Args:
        message: field `digest`.

    Raises:
        StoreDamaged: a byte of it is damaged.
    """
    try:
        storage_fd, *bundle_fds = message.fds
        digest = BundleDigest(message.value["digest"])
        bundle = open_stored_bundle(bundle_fds, read_key(storage_fd, STORAGE_KEY), digest)
        bundle.check_files()
        head = bundle.head
        return {"manifest": head.manifest, "variant": head.variant, "counter_epoch": head.counter_epoch}
    finally:
        message.close()


def seal_adapter(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Seal an adapter with its golden outputs, and return its `sha256` and `size`: call `seal-adapter`.

    Args:
        message: field `family`.

    Raises:
        TooLarge: the adapter is empty, or larger than MAX_ADAPTER_BYTES.
    """
    try:
        storage_fd, adapter_fd, golden_fd, output_fd = message.fds
        adapter = os.pread(adapter_fd, MAX_ADAPTER_BYTES + 1, 0)
        if not 0 < len(adapter) <= MAX_ADAPTER_BYTES:
            raise TooLarge(f"the adapter has {len(adapter)} bytes, expected 1 to {MAX_ADAPTER_BYTES}")
        golden = os.pread(golden_fd, os.fstat(golden_fd).st_size, 0)
        sha256 = hashlib.sha256(adapter).hexdigest()
        with open(output_fd, "wb", closefd=False, buffering=READ_BYTES) as out:
            context = FrameContext(ADAPTER_LABEL, message.value["family"], 0, "", sha256)
            writer = FrameWriter(out, read_key(storage_fd, STORAGE_KEY), context)
            writer.write(len(adapter).to_bytes(8, "big"))
            writer.write(adapter)
            writer.write(golden)
            writer.close()
        return {"sha256": sha256, "size": len(adapter)}
    finally:
        message.close()


def unseal_adapter(_supervisor: SupervisorChannel, message: Message) -> Message:
    """Unseal an adapter and its golden outputs into sealed memfds: call `unseal-adapter`.

    Args:
        message: fields `family`, `sha256`.

    Raises:
        StoreDamaged: the sealed file does not open, or is another adapter.
    """
    try:
        storage_fd, sealed_fd = message.fds
        context = FrameContext(ADAPTER_LABEL, message.value["family"], 0, "", message.value["sha256"])
        try:
            reader = FrameReader(_HashedFile(sealed_fd), read_key(storage_fd, STORAGE_KEY), context)
            size = int.from_bytes(reader.read(8), "big")
            adapter, golden = reader.read(min(size, MAX_ADAPTER_BYTES)), reader.read(MAX_ADAPTER_BYTES)
        except Refused as error:
            raise StoreDamaged(f"the adapter does not open: {error.message}") from error
        if hashlib.sha256(adapter).hexdigest() != message.value["sha256"]:
            raise StoreDamaged("the sealed adapter does not have the recorded SHA-256")
        adapter_fd = create_sealed_memfd("adapter", adapter)
        return Message({}, (adapter_fd, create_sealed_memfd("golden-with-adapter", golden)))
    finally:
        message.close()


def _sync_outputs(fds: Sequence[int]) -> int:
    """Make the files of an incoming bundle durable, and return their size in bytes."""
    for fd in fds:
        os.fsync(fd)
    return sum(os.fstat(fd).st_size for fd in fds)


def _parse_release(value: JsonObject) -> tuple[Manifest, Variant]:
    head = SealedHead(value["manifest"], value["variant"], value["counter_epoch"])
    return parse_manifest(head.manifest.encode()), head.parse_variant()


def _open_content_key(value: JsonObject, device_key: Secret, manifest: Manifest, variant: Variant) -> Secret:
    repository, cohort, epoch = value["repository"], value["cohort"], value["epoch"]
    cohort_context = EnvelopeContext(COHORT_KEY_PURPOSE, repository, cohort, epoch)
    cohort_key = open_envelope(bytes.fromhex(value["cohort_envelope"]), device_key, cohort_context)
    if derive_public_key(cohort_key).hex() != value["cohort_public_key"]:
        raise CohortKeyMismatch(f"the key in the envelope of cohort {cohort!r} differs from the fleet document")
    context = EnvelopeContext(CONTENT_KEY_PURPOSE, repository, cohort, epoch, manifest.family, manifest.counter)
    content_key = open_envelope(bytes.fromhex(value["content_envelope"]), cohort_key, context)
    check_commitment(content_key, variant.key_commitment)
    return content_key


def _import_decoder(_throttle: Throttle, policy: JailPolicy) -> None:
    if policy.applies_patches:
        importlib.import_module("bundle.patch.apply")
        for name in CODECS:
            with suppress(ImportError):
                importlib.import_module(name)


if __name__ == "__main__":
    patcher = Patcher()
    handlers: dict[str, Handler] = {
        "unlock": patcher.load_content_key,
        "apply": patcher.apply_patch,
        "convert": convert_bundle,
        "check": check_files,
        "unseal": unseal_bundle,
        "describe": read_sealed_header,
        "seal-adapter": seal_adapter,
        "unseal-adapter": unseal_adapter,
        "seal-client-key": seal_client_key,
        "unseal-client-key": unseal_client_key,
        "sign": sign_lines,
    }
    serve_calls(start_worker(_import_decoder)[0], handlers)
