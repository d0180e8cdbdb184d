"""Where the device's own keys rest, as the configuration names it: files, a TPM, or a PKCS#11 token.

    file                                              0600 files; whoever has the disk has the keys
    tpm:[TCTI][?pcrs=0,7&nv=0x1801a57]                sealed to this TPM, and to the PCRs where there are any
    pkcs11:LABEL?module=/lib/x.so&pin-file=/pin       wrapped by an AES key that never leaves the token

Names only: the supervisor reads them, and neither loads a cryptographic library nor talks to a TPM.
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
    """Which TPM, bound to what.

    Attributes:
        tcti: how to reach it, as tpm2-tss names it: "device:/dev/tpmrm0", "swtpm:path=…", or "" for the system's own.
        pcrs: numbers of PCRs in the SHA-256 bank, sorted; () binds to the machine alone.
        nv_index: of the counter.
    """

    tcti: str = ""
    pcrs: tuple[int, ...] = ()
    nv_index: int = DEFAULT_NV_INDEX


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Which token, through which library, unlocked with which PIN.

    Attributes:
        label: of the token.
        module: path of its PKCS#11 library.
        pin_file: path of a 0600 file: a device starts without anybody who could type.
    """

    label: str
    module: Path
    pin_file: Path


KeyStorageSettings: TypeAlias = TpmSettings | TokenSettings | None


def parse_key_storage(uri: str) -> KeyStorageSettings:
    """Take a home's URI apart; None is files. Raises ValueError, with what is expected."""
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
    """`tpm:[TCTI][?pcrs=0,7&nv=0x1801a57]`. Raises ValueError, with what is expected."""
    found = TPM_URI_PATTERN.fullmatch(uri)
    if found is None:
        raise ValueError("expected tpm:[TCTI][?pcrs=N,N…&nv=0x…]")
    pcrs: tuple[int, ...] = ()
    nv_index = DEFAULT_NV_INDEX
    for item in (found["query"] or "").split("&"):
        name, _, value = item.partition("=")
        if name == "pcrs":
            if not re.fullmatch(r"[0-9]{1,2}(,[0-9]{1,2})*", value) or max(map(int, value.split(","))) > MAX_PCR_INDEX:
                raise ValueError(f"pcrs={value}: expected numbers from 0 to {MAX_PCR_INDEX} with commas")
            pcrs = tuple(sorted({int(number) for number in value.split(",")}))
        elif name == "nv":
            if not re.fullmatch(r"0x01[0-9a-f]{6}|0x1[0-9a-f]{6}", value):
                raise ValueError(f"nv={value}: expected a handle from 0x1000000 to 0x1ffffff")
            nv_index = int(value, 16)
        elif item:
            raise ValueError(f"{item!r}: expected pcrs=… or nv=…")
    return TpmSettings(found["tcti"], pcrs, nv_index)
