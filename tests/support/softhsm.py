"""A real SoftHSM token for tests, with a P-256 key (id 2) and an Ed25519 key (id 3)."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.frames import Secret
from keys.tokens import LIBRARY_VARIABLE

LIBRARIES = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm.so",
)
SOFTHSM = next((path for path in LIBRARIES if Path(path).exists()), None)
PIN = Secret(b"1234")

needs_softhsm = pytest.mark.skipif(
    SOFTHSM is None or shutil.which("softhsm2-util") is None or importlib.util.find_spec("pkcs11") is None,
    reason="SoftHSM (Debian: softhsm2) or python-pkcs11 (extra pkcs11) is not installed",
)

MAKE_KEYS = """
import os, pkcs11
from pkcs11.util.ec import encode_named_curve_parameters as curve
from pkcs11 import Attribute, KeyType, Mechanism
token = pkcs11.lib(os.environ["PYKCS11LIB"]).get_token(token_label="test")
with token.open(user_pin="1234", rw=True) as session:
    def parameters(kind, name):
        return session.create_domain_parameters(kind, {Attribute.EC_PARAMS: curve(name)}, local=True)
    parameters(KeyType.EC, "secp256r1").generate_keypair(store=True, id=b"\\x02", label="p256")
    edwards = parameters(KeyType.EC_EDWARDS, "1.3.101.112")
    edwards.generate_keypair(mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN, store=True, id=b"\\x03", label="ed25519")
"""


def make_token(folder: Path, label: str = "test", *, with_keys: bool = True) -> dict[str, str]:
    """Initialize a token in `folder`, and return the environment variables that it needs.

    SoftHSM reads its folder once per process, so a library that an earlier test loaded is unloaded first.
    """
    if "pkcs11" in sys.modules:
        sys.modules["pkcs11"].unload(SOFTHSM)
    (folder / "tokens").mkdir(parents=True)
    (folder / "conf").write_text(f"directories.tokendir = {folder / 'tokens'}\n")
    environment = {"SOFTHSM2_CONF": os.fspath(folder / "conf"), LIBRARY_VARIABLE: str(SOFTHSM)}
    both = {**os.environ, **environment}
    words = ["softhsm2-util", "--init-token", "--free", "--label", label, "--pin", "1234", "--so-pin", "5678"]
    subprocess.run(words, env=both, check=True, capture_output=True)
    if with_keys:
        subprocess.run([sys.executable, "-c", MAKE_KEYS], env=both, check=True, capture_output=True)
    return environment
