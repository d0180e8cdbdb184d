"""The keeper: opens this device's sealed keys, and reads and raises the counter behind the floor; then it ends.

It is the one process that talks to the TPM or the token. It is started only where the identity is sealed (never for
`file`), has no network, and reads nothing that came over one. The way to the TPM is opened before the jail closes the
files. A token's library opens files of its own whenever it likes: with one, the jail leaves files open.

Calls:
- `open`: fields `use`; descriptor: the key file. Answers with a sealed memfd that holds a plain key file.
- `counter`: answers {"value": the TPM's counter, or null}.
- `raise`: field `value`. Answers as `counter`.
"""

import os
from contextlib import ExitStack
from typing import Final

# loaded by cryptography at its first use, when the jail has closed the files
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
    """The calls."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._key_storage: OpenKeyStorage | None = None

    def prepare(self) -> None:
        """Open the home, before the jail. Raises TpmUnavailable, DeviceTokenUnavailable, IdentityInvalid."""
        settings = parse_key_storage(os.environ[KEY_STORAGE_VARIABLE])
        if settings is not None:
            self._key_storage = open_key_storage(settings, self._stack)

    def open_key(self, _supervisor: SupervisorChannel, message: Message) -> Message:
        """See above. Raises IdentityInvalid, TpmPolicyUnavailable, TpmUnavailable, DeviceTokenUnavailable."""
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
        """See above. Raises TpmUnavailable."""
        message.close()
        assert self._key_storage is not None
        return {"value": self._key_storage.read_counter()}

    def raise_counter(self, _supervisor: SupervisorChannel, message: Message) -> JsonObject:
        """See above. Raises TpmUnavailable."""
        message.close()
        assert self._key_storage is not None
        return {"value": self._key_storage.raise_counter(int(message.value["value"]))}


if __name__ == "__main__":
    key_opener = KeyOpener()
    supervisor, _ = start_worker(lambda _pace: key_opener.prepare())
    serve_calls(
        supervisor, {"open": key_opener.open_key, "counter": key_opener.read_counter, "raise": key_opener.raise_counter}
    )
