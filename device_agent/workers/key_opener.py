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

from device_agent.config.key_storage import parse_home
from device_agent.identity.device_keys import key_file
from device_agent.identity.sealed_key import MAX_SEALED_FILE_BYTES, Opened, is_sealed, open_home, parse_sealed
from device_agent.process.channel import Message, Value
from device_agent.process.worker import Parent, serve, start

HOME_VARIABLE: Final = "AIRWEIGHTS_IDENTITY"


class Keeper:
    """The calls."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._home: Opened | None = None

    def prepare(self) -> None:
        """Open the home, before the jail. Raises TpmUnavailable, DeviceTokenUnavailable, IdentityInvalid."""
        settings = parse_home(os.environ[HOME_VARIABLE])
        if settings is not None:
            self._home = open_home(settings, self._stack)

    def open(self, _parent: Parent, message: Message) -> Message:
        """See above. Raises IdentityInvalid, TpmPolicyUnavailable, TpmUnavailable, DeviceTokenUnavailable."""
        try:
            (fd,) = message.fds
            use = str(message.value["use"])
            data = os.pread(fd, MAX_SEALED_FILE_BYTES + 1, 0)
            if is_sealed(data):
                assert self._home is not None
                data = key_file(use, self._home.unseal(use, parse_sealed(data, use)[1]))
            memory = os.memfd_create("device-key", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.write(memory, data)
            return Message({}, (memory,))
        finally:
            message.close()

    def counter(self, _parent: Parent, message: Message) -> Value:
        """See above. Raises TpmUnavailable."""
        message.close()
        assert self._home is not None
        return {"value": self._home.counter()}

    def raise_counter(self, _parent: Parent, message: Message) -> Value:
        """See above. Raises TpmUnavailable."""
        message.close()
        assert self._home is not None
        return {"value": self._home.raise_counter(int(message.value["value"]))}


if __name__ == "__main__":
    keeper = Keeper()
    parent, _ = start(lambda _pace: keeper.prepare())
    serve(parent, {"open": keeper.open, "counter": keeper.counter, "raise": keeper.raise_counter})
