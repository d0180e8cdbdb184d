"""The TLS client key, sealed under the storage key: two calls of the patcher.

The key storage protects the storage key, and so the client key. The plain key exists in sealed memory files only: the
patcher, which has no network, creates one, and the supervisor passes it to the fetcher.

Calls (descriptors in their order):
- `seal-client-key` (storage key, PEM file, output): seal the key into one file.
- `unseal-client-key` (storage key, sealed file): the plain key.
"""

import os
from typing import Final

from bundle.errors import Refused, TooLarge
from bundle.frames import FrameContext, FrameReader, FrameWriter
from device_agent.errors import IdentityInvalid
from device_agent.identity.device_keys import read_key
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel
from device_agent.runtime.bundle_fds import create_sealed_memfd
from device_agent.storage.device_directory import STORAGE_KEY

CLIENT_KEY_LABEL: Final = "airweights client key v1"
MAX_CLIENT_KEY_BYTES: Final = 64 * 1024


def seal_client_key(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Seal a key: call `seal-client-key`.

    Args:
        message: has no fields.

    Raises:
        TooLarge: the file is empty, or larger than MAX_CLIENT_KEY_BYTES.
    """
    try:
        storage_fd, plain_fd, output_fd = message.fds
        plain = os.pread(plain_fd, MAX_CLIENT_KEY_BYTES + 1, 0)
        if not 0 < len(plain) <= MAX_CLIENT_KEY_BYTES:
            raise TooLarge(f"the client key has {len(plain)} bytes, expected 1 to {MAX_CLIENT_KEY_BYTES}")
        with open(output_fd, "wb", closefd=False) as out:
            writer = FrameWriter(out, read_key(storage_fd, STORAGE_KEY), _context())
            writer.write(plain)
            writer.close()
        return {}
    finally:
        message.close()


def unseal_client_key(_supervisor: SupervisorChannel, message: Message) -> Message:
    """Unseal the key into a sealed memfd: call `unseal-client-key`.

    Args:
        message: has no fields.

    Raises:
        IdentityInvalid: the sealed file does not open.
    """
    try:
        storage_fd, sealed_fd = message.fds
        try:
            with open(sealed_fd, "rb", closefd=False) as sealed:
                reader = FrameReader(sealed, read_key(storage_fd, STORAGE_KEY), _context())
                plain = reader.read(MAX_CLIENT_KEY_BYTES)
        except Refused as error:
            raise IdentityInvalid(
                f"the sealed client key does not open: {error.message}",
                hint="seal it again: device-agent identity seal-client-key FILE",
            ) from error
        return Message({}, (create_sealed_memfd("client-key", plain),))
    finally:
        message.close()


def _context() -> FrameContext:
    return FrameContext(CLIENT_KEY_LABEL, "", 0, "")
