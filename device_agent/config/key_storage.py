"""Key storage URIs: the value of `key_storage` in the configuration, parsed into settings.

    file                                              files of mode 0600; a copy of the disk includes the keys
    tpm:[TCTI][?pcrs=0,7&nv=0x1801a57]                sealed to this TPM, and to the named PCRs if any
    pkcs11:LABEL?module=/lib/x.so&pin-file=/pin       wrapped by an AES key that never leaves the token

The supervisor imports this module: it only parses text, loads no cryptographic library and opens no TPM.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

FILE_STORAGE: Final = "file"
DEFAULT_NV_INDEX: Final = 0x01801A57  # in the owner's range (TCG registry of reserved handles, section 2.2)
TPM_URI_PATTERN: Final = re.compile(r"tpm:(?P<tcti>[A-Za-z0-9=,:/._-]*)(?:\?(?P<query>[a-z0-9=,&x]*))?")
MAX_PCR_INDEX: Final = 23
TOKEN_URI_PATTERN: Final = re.compile(
    r"pkcs11:(?P<label>[A-Za-z0-9 ._-]{1,32})\?module=(?P<module>/[^&?\0]+)&pin-file=(?P<pin>/[^&?\0]+)"
)


@dataclass(frozen=True, slots=True)
class TpmSettings:
    """Settings of a TPM 2.0: its address, the PCRs that the keys are sealed to, and the counter's index.

    Attributes:
        tcti: address in the form of tpm2-tss: "device:/dev/tpmrm0", "swtpm:path=…", or "" for the system's default.
        pcrs: numbers of PCRs in the SHA-256 bank, sorted; () seals to the TPM alone.
        nv_index: NV index of the monotonic counter.
    """

    tcti: str = ""
    pcrs: tuple[int, ...] = ()
    nv_index: int = DEFAULT_NV_INDEX


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Settings of a PKCS#11 token: its label, its library and its PIN file.

    Attributes:
        label: the token's label.
        module: path of the token's PKCS#11 library.
        pin_file: path of a file of mode 0600 with the PIN, since a device starts without an operator to type it.
    """

    label: str
    module: Path
    pin_file: Path


KeyStorageSettings: TypeAlias = TpmSettings | TokenSettings | None


def parse_key_storage(uri: str) -> KeyStorageSettings:
    """Parse a key storage URI; return None for "file".

    Raises:
        ValueError: the URI has none of the three forms. The message says what is expected.
    """
    scheme, _, _ = uri.partition(":")
    if uri == FILE_STORAGE:
        return None
    if scheme == "tpm":
        return _parse_tpm(uri)
    if scheme == "pkcs11":
        found = TOKEN_URI_PATTERN.fullmatch(uri)
        if found is None:
            raise ValueError("expected pkcs11:LABEL?module=/path/of/library.so&pin-file=/path/of/pin")
        return TokenSettings(found["label"], Path(found["module"]), Path(found["pin"]))
    raise ValueError("expected file, tpm:… or pkcs11:…")


def _parse_tpm(uri: str) -> TpmSettings:
    """Parse `tpm:[TCTI][?pcrs=0,7&nv=0x1801a57]`. Raises ValueError that says what is expected."""
    found = TPM_URI_PATTERN.fullmatch(uri)
    if found is None:
        raise ValueError("expected tpm:[TCTI][?pcrs=N,N…&nv=0x…]")
    pcrs: tuple[int, ...] = ()
    nv_index = DEFAULT_NV_INDEX
    for item in (found["query"] or "").split("&"):
        name, _, value = item.partition("=")
        if name == "pcrs":
            if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", value) or max(map(int, value.split(","))) > MAX_PCR_INDEX:
                raise ValueError(f"pcrs={value}: expected numbers from 0 to {MAX_PCR_INDEX}, separated by commas")
            pcrs = tuple(sorted({int(number) for number in value.split(",")}))
        elif name == "nv":
            if not re.fullmatch(r"0x01[0-9a-f]{6}|0x1[0-9a-f]{6}", value):
                raise ValueError(f"nv={value}: expected a handle from 0x1000000 to 0x1ffffff")
            nv_index = int(value, 16)
        elif item:
            raise ValueError(f"{item!r}: expected pcrs=… or nv=…")
    return TpmSettings(found["tcti"], pcrs, nv_index)
