"""A signed line of a device, the form of reports and vitals (docs/format.md sections 15 and 18).

A line is one JSON object in canonical form: `schema`, `device_id`, the fields of its content, and `signature`. The
device's Ed25519 key signs the label of the schema ‖ the same object without `signature`. This module
reads a signature, and verifies none.

Pure: the supervisor loads this module without a cryptographic library.
"""

import hashlib
import re
from typing import ClassVar, Final

from bundle import strict_json
from bundle.errors import Malformed
from bundle.strict_json import JSON, SHA256_HEX_PATTERN, StrictObject

LOG_ID_PATTERN: Final = re.compile(r"[0-9a-f]{32}")
REASON_PATTERN: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*|")
SIGNATURE_PATTERN: Final = re.compile(r"[0-9a-f]{128}")


class LineContent:
    """The content of a line: base class of the frozen dataclasses of reports and vitals.

    Attributes:
        schema: name and version of the format.
        label: bytes before the object that is signed.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, object]]
    schema: ClassVar[str]
    label: ClassVar[bytes]

    def as_json(self) -> dict[str, JSON]:
        """Return the fields of the content as a JSON object."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    def digest(self) -> str:
        """Return the SHA-256 of the canonical fields, in hexadecimal."""
        return hashlib.sha256(strict_json.encode(self.as_json())).hexdigest()

    def signed_bytes(self, device_id: str) -> bytes:
        """Return the bytes that the device signs; `device_id` is 64 hexadecimal digits."""
        return self.label + strict_json.encode(self._line(device_id))

    def encode(self, device_id: str, signature: bytes) -> bytes:
        """Return the line as the device sends it, in canonical JSON.

        Args:
            device_id: id of the device, 64 hexadecimal digits.
            signature: Ed25519 signature of `signed_bytes`, 64 bytes.
        """
        return strict_json.encode({**self._line(device_id), "signature": signature.hex()})

    def _line(self, device_id: str) -> dict[str, JSON]:
        return {"schema": self.schema, "device_id": device_id, **self.as_json()}


def open_line(data: bytes, what: str, schema: str, max_bytes: int) -> tuple[StrictObject, str, bytes]:
    """Return the object of a line, of which the content is still unread, its device id and its signature.

    Args:
        data: the line.
        what: name of the document in error messages.
        schema: name and version of the format.
        max_bytes: limit of the line.

    Raises:
        Malformed: the line is no object of this format, or has no device id or signature.
        TooLarge: it is longer than the limit.
    """
    fields = StrictObject(strict_json.decode(data, what=what, max_bytes=max_bytes), what)
    found = fields.text("schema")
    if found != schema:
        raise Malformed(f"{what}.schema: found {found!r}, expected {schema!r}")
    device_id, signature = fields.text("device_id", SHA256_HEX_PATTERN), fields.text("signature", SIGNATURE_PATTERN)
    return fields, device_id, bytes.fromhex(signature)
