"""The verifier loads everything that a signature of any kind needs before its jail blocks files, and no signer
and no HTTP client."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, generate_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

MESSAGE = b"message"
CHILD = """
import json, sys
import device_agent.workers.verifier
from securesystemslib.signer import Key, Signature
before = set(sys.modules)
for key_id, key, signature in json.load(sys.stdin):
    Key.from_dict(key_id, key).verify_signature(Signature(key_id, signature), b"message")
print(sorted(set(sys.modules) - before))
"""
LOADED = """
import contextlib, json, runpy, sys
with contextlib.suppress(SystemExit):  # it was started without a channel
    runpy.run_module("device_agent.workers.verifier", run_name="__main__")
print(json.dumps(sorted(name for name, module in sys.modules.items() if module is not None)))
"""


def ecdsa(curve: SECP256R1 | SECP384R1) -> CryptoSigner:
    private = generate_private_key(curve)
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))


@pytest.mark.parametrize("kind", ["ed25519", "ml-dsa-65", "ecdsa-p256", "ecdsa-p384", "rsa"])
def test_verifying_a_signature_loads_nothing_more(kind: str) -> None:
    """Otherwise a role with a P-256 key would be one signature short, on devices only."""
    makers: dict[str, Callable[[], CryptoSigner]] = {
        "ed25519": CryptoSigner.generate_ed25519,
        "ml-dsa-65": CryptoSigner.generate_mldsa,
        "ecdsa-p256": lambda: ecdsa(SECP256R1()),
        "ecdsa-p384": lambda: ecdsa(SECP384R1()),
        "rsa": CryptoSigner.generate_rsa,
    }
    signer = makers[kind]()
    row = [signer.public_key.keyid, signer.public_key.to_dict(), signer.sign(MESSAGE).signature]
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps([row]), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_that_signs_or_connects_is_loaded() -> None:
    """The tests have python-pkcs11 and hvac installed; tuf would load both, and urllib3."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert "tuf.api.metadata" in loaded
    assert not {"hvac", "pkcs11", "asn1crypto", "requests", "urllib3", "ssl", "http.client"} & loaded
