"""A call of the patcher: sign reports and vitals with the device's key.

The patcher has no network. It signs only what it parsed as a report or a vital, so that no caller can let it sign
anything else.
"""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bundle.device_report import DeviceReport
from bundle.errors import Malformed
from bundle.strict_json import SHA256_HEX_PATTERN, StrictObject
from bundle.vital import Vital
from device_agent.identity.device_keys import read_key
from device_agent.process.channel import JsonObject, Message
from device_agent.process.worker import SupervisorChannel
from device_agent.storage.device_directory import SIGNING_KEY


def sign_lines(_supervisor: SupervisorChannel, message: Message) -> JsonObject:
    """Sign reports and vitals, and return their lines: call `sign`.

    Args:
        message: fields `device_id`, `reports` and `vitals`; descriptor of the signing key.

    Raises:
        Malformed: an object is neither a report nor a vital.
    """
    try:
        fields = StrictObject(message.value, "sign")
        device_id = fields.text("device_id", SHA256_HEX_PATTERN)
        key = Ed25519PrivateKey.from_private_bytes(bytes(read_key(message.fds[0], SIGNING_KEY).value))
        lines: list[str] = []
        for name, parse in (("reports", DeviceReport.parse), ("vitals", Vital.parse)):
            rows = fields.value(name)
            if not isinstance(rows, list):
                raise Malformed(f"sign.{name}: expected a list")
            for row in rows:
                content = parse(StrictObject(row, name))
                lines.append(content.encode(device_id, key.sign(content.signed_bytes(device_id))).decode())
        return {"lines": lines}
    finally:
        message.close()
