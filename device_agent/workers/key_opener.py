"""The key opener: opens the device's sealed keys, and reads and raises the TPM counter.

It is the only worker that talks to the TPM or the token. It is started only if the key storage is a TPM or token, has
no network, and reads nothing that was downloaded. The connection to the TPM is opened before the jail closes the files.
The library of a token opens files at any time, so with a token the jail leaves files accessible.

Calls:
- `open`: field `use`; descriptor: the key file. Response: a memfd with a plain key file.
- `counter`: no fields. Response: {"value": the TPM counter, or null}.
- `raise`: field `value`. Response: as for `counter`.
"""

import os
from contextlib import ExitStack
from typing import Final

# cryptography loads it at its first use, when the jail has closed the files
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

from device_agent.config.key_storage import parse_key_storage
from device_agent.identity.device_keys import encode_key_file
from device_agent.identity.sealed_key import (
    MAX_SEALED_FILE_BYTES,
    OpenKeyStorage,
    is_sealed,
    open_key_storage,
    parse_sealed_file,
)
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel, serve_calls, start_worker

KEY_STORAGE_VARIABLE: Final = "AIRWEIGHTS_KEY_STORAGE"


class KeyOpener:
    """The calls of the key opener, on one open key storage."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key_storage: OpenKeyStorage | None = None

    def prepare(self) -> None:
        """Open the key storage, before the jail closes the files.

        Raises:
            TpmUnavailable: the TPM does not respond.
            DeviceTokenUnavailable: the token does not respond.
            IdentityInvalid: the setting is malformed.
        """
        settings = parse_key_storage(os.environ[KEY_STORAGE_VARIABLE])
        if settings is not None:
            self._key_storage = open_key_storage(settings, self._stack)

    def open_key(self, _supervisor: SupervisorChannel, message: Message) -> Message:
        """Open a key file: call `open`.

        Args:
            message: field `use`; descriptor of the key file.

        Raises:
            IdentityInvalid: the key file is malformed.
            TpmPolicyMismatch: the PCRs changed since the key was sealed.
            TpmUnavailable: the TPM does not respond.
            DeviceTokenUnavailable: the token does not respond.
        """
        try:
            (fd,) = message.fds
            use = str(message.value["use"])
            data = os.pread(fd, MAX_SEALED_FILE_BYTES + 1, 0)
            if is_sealed(data):
                assert self._key_storage is not None
                data = encode_key_file(use, self._key_storage.unseal(use, parse_sealed_file(data, use)[1]))
            memory = os.memfd_create("device-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(memory, data)
            return Message({}, (memory,))
        finally:
            message.close()

    def read_counter(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Read the TPM counter: call `counter`.

        Args:
            message: has no fields.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        message.close()
        assert self._key_storage is not None
        return {"value": self._key_storage.read_counter()}

    def raise_counter(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """Raise the TPM counter: call `raise`.

        Args:
            message: field `value`.

        Raises:
            TpmUnavailable: the TPM does not respond.
        """
        message.close()
        assert self._key_storage is not None
        return {"value": self._key_storage.raise_counter(int(message.value["value"]))}


if __name__ == "__main__":
    key_opener = KeyOpener()
    supervisor, _ = start_worker(lambda _pace, _policy: key_opener.prepare())
    serve_calls(
        supervisor, {"open": key_opener.open_key, "counter": key_opener.read_counter, "raise": key_opener.raise_counter}
    )
