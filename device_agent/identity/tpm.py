"""A TPM 2.0: it seals keys, and has the counter behind the rollback floor (tpm2-pytss, extra `tpm`).

Rules:
1. Keys are sealed under an ECC P-256 primary key of the owner hierarchy. The TPM derives it from its own seed each time
   it is needed. A sealed key can be opened only in the TPM that sealed it.
2. A sealed object has no password, only a policy: the SHA-256 values that the chosen PCRs had when it was sealed.
   Without PCRs the policy is empty, and the object can be opened after any boot of this machine.
3. Values that leave the TPM are encrypted in a session salted with the primary key, so the bus carries no plain key.
   The primary's name is compared with the one at the time of sealing, so that it cannot be replaced on the way.
4. Transient objects and sessions are flushed, also after an error: a TPM has room for three of each.
5. The counter is an NV index of type counter. It only grows, even if it is removed and defined again.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from device_agent.config.key_storage import TpmSettings
from device_agent.errors import IdentityInvalid, TpmPolicyMismatch, TpmUnavailable

MAX_SEALED_BYTES: Final = 128  # TPM 2.0 part 2, MAX_SYM_DATA
# TPM2_RC_POLICY_FAIL and TPM2_RC_VALUE, formats with the parameter or session number masked out (part 2, 6.6.3)
POLICY_FAILURE_CODES: Final = (0x9D, 0x84)
INSTALL_HINT: Final = "pip install 'airweights[tpm]'; building it needs Debian's libtss2-dev"


@dataclass(frozen=True, slots=True)
class SealedObject:
    """A key outside of the TPM; only that TPM can open it.

    Attributes:
        public, private: the object, as the TPM returned it.
        parent_name: name of the primary key that it was sealed under.
        pcrs: numbers of the PCRs in its policy.
    """

    public: bytes
    private: bytes
    parent_name: bytes
    pcrs: tuple[int, ...]


class Tpm:
    """An open TPM; use it as a context manager. Not thread-safe.

    Args:
        settings: connection, PCRs and NV index.

    Raises:
        TpmUnavailable: the TPM is missing or does not respond, or tpm2-pytss is not installed.
    """

    def __init__(self, settings: TpmSettings) -> None:
        os.environ.setdefault("TSS2_LOG", "all+none")  # the raised errors contain the same text
        try:
            import tpm2_pytss as library
        except ImportError as error:
            raise TpmUnavailable(f"{error.name or 'tpm2_pytss'} is not installed", hint=INSTALL_HINT) from error
        self._tss: Any = library
        self._settings = settings
        with self._translate_errors("open"):
            self._esys: Any = library.ESAPI(settings.tcti or None)

    def __enter__(self) -> "Tpm":
        return self

    def __exit__(self, *_: object) -> None:
        self._esys.close()

    def seal(self, value: bytes) -> SealedObject:
        """Seal a value under the current values of the PCRs.

        Args:
            value: the bytes to seal, at most MAX_SEALED_BYTES.

        Raises:
            TpmUnavailable: the TPM cannot be used.
        """
        tss = self._tss
        assert len(value) <= MAX_SEALED_BYTES
        with self._translate_errors("seal with"), self._create_primary() as (primary, name):
            public = tss.TPM2B_PUBLIC(
                tss.TPMT_PUBLIC(
                    type=tss.TPM2_ALG.KEYEDHASH,
                    nameAlg=tss.TPM2_ALG.SHA256,
                    # no userWithAuth: rule 2. noDA: a wrong policy must not lock the TPM for other programs
                    objectAttributes=tss.TPMA_OBJECT.FIXEDTPM | tss.TPMA_OBJECT.FIXEDPARENT | tss.TPMA_OBJECT.NODA,
                    authPolicy=tss.TPM2B_DIGEST(self._policy_digest()),
                    parameters=tss.TPMU_PUBLIC_PARMS(
                        keyedHashDetail=tss.TPMS_KEYEDHASH_PARMS(
                            scheme=tss.TPMT_KEYEDHASH_SCHEME(scheme=tss.TPM2_ALG.NULL)
                        )
                    ),
                )
            )
            sensitive = tss.TPM2B_SENSITIVE_CREATE(tss.TPMS_SENSITIVE_CREATE(data=tss.TPM2B_SENSITIVE_DATA(value)))
            with self._open_session(tss.TPM2_SE.HMAC, primary, tss.TPMA_SESSION.DECRYPT) as session:
                created = self._esys.create(primary, sensitive, public, session2=session)
            return SealedObject(created[1].marshal(), created[0].marshal(), name, self._settings.pcrs)

    def unseal(self, sealed: SealedObject) -> bytes:
        """Return the value of a sealed object.

        Raises:
            IdentityInvalid: the object was sealed in another TPM, or is damaged.
            TpmPolicyMismatch: the PCRs differ from those at the time of sealing.
            TpmUnavailable: the TPM cannot be used.
        """
        tss = self._tss
        with self._translate_errors("unseal with"), self._create_primary() as (primary, name):
            if name != sealed.parent_name:
                raise IdentityInvalid("the identity was sealed in another TPM, or this TPM was cleared since")
            try:
                public, _ = tss.TPM2B_PUBLIC.unmarshal(sealed.public)
                private, _ = tss.TPM2B_PRIVATE.unmarshal(sealed.private)
                loaded = self._esys.load(primary, private, public)
            except tss.TSS2_Exception as error:
                raise IdentityInvalid(f"the TPM cannot load the sealed identity: {_describe_error(error)}") from error
            try:
                with self._open_session(tss.TPM2_SE.POLICY, primary, tss.TPMA_SESSION.ENCRYPT) as session:
                    if sealed.pcrs:
                        self._esys.policy_pcr(session, None, _selection(sealed.pcrs))
                    try:
                        return bytes(self._esys.unseal(loaded, session1=session))
                    except tss.TSS2_Exception as error:
                        if error.rc & 0xBF not in POLICY_FAILURE_CODES:
                            raise
                        raise TpmPolicyMismatch(
                            f"PCR {', '.join(map(str, sealed.pcrs))}: value differs from when the identity was sealed",
                            hint="boot the former software; before a planned change, run `device-agent identity move`",
                        ) from error
            finally:
                self._esys.flush_context(loaded)

    def read_counter(self) -> int:
        """Return the value of the counter; 0 if it is not defined yet.

        Raises:
            TpmUnavailable: the TPM cannot be used.
        """
        with self._translate_errors("read the counter of"):
            index = self._find_index()
            return 0 if index is None else self._read_index(index)

    def raise_counter(self, value: int) -> int:
        """Increment the counter until it is at least `value`; define it first if it is missing.

        Returns:
            The new value.

        Raises:
            TpmUnavailable: the TPM cannot be used.
        """
        with self._translate_errors("raise the counter of"):
            index = self._find_index() or self._define_index()
            while (found := self._read_index(index)) < value:
                self._esys.nv_increment(index, auth_handle=index)
            return found

    def transient_handles(self) -> int:
        """Count the objects and sessions in this TPM that are not flushed (rule 4); for tests."""
        tss, count = self._tss, 0
        for first in (tss.TPM2_HT.TRANSIENT << 24, tss.TPM2_HT.HMAC_SESSION << 24, tss.TPM2_HT.POLICY_SESSION << 24):
            count += sum(handle >> 24 == first >> 24 for handle in self._handles(first, 64))
        return count

    @contextlib.contextmanager
    def _create_primary(self) -> Iterator[tuple[Any, bytes]]:
        """Create the primary key of rule 1; yield its handle and its name."""
        handle, public, *_ = self._esys.create_primary(None, "ecc")
        try:
            yield handle, bytes(public.get_name())
        finally:
            self._esys.flush_context(handle)

    @contextlib.contextmanager
    def _open_session(self, kind: Any, primary: Any, direction: Any) -> Iterator[Any]:
        """Open a session of rule 3 that encrypts parameters in one direction."""
        tss = self._tss
        symmetric = tss.TPMT_SYM_DEF.parse("aes128cfb")
        session = self._esys.start_auth_session(primary, tss.ESYS_TR.NONE, kind, symmetric, tss.TPM2_ALG.SHA256)
        try:
            self._esys.trsess_set_attributes(session, direction | tss.TPMA_SESSION.CONTINUESESSION)
            yield session
        finally:
            self._esys.flush_context(session)

    def _policy_digest(self) -> bytes:
        tss = self._tss
        if not self._settings.pcrs:
            return bytes(32)  # an empty policy session has a digest of zeros
        session = self._esys.start_auth_session(
            tss.ESYS_TR.NONE, tss.ESYS_TR.NONE, tss.TPM2_SE.TRIAL, None, tss.TPM2_ALG.SHA256
        )
        try:
            self._esys.policy_pcr(session, None, _selection(self._settings.pcrs))
            return bytes(self._esys.policy_get_digest(session))
        finally:
            self._esys.flush_context(session)

    def _find_index(self) -> Any | None:
        if self._settings.nv_index not in self._handles(self._settings.nv_index, 1):
            return None
        return self._esys.tr_from_tpmpublic(self._settings.nv_index)

    def _handles(self, first: int, limit: int) -> list[int]:
        # `found` is a view into `owner`, which must stay alive
        _, owner = self._esys.get_capability(self._tss.TPM2_CAP.HANDLES, first, limit)
        found = owner.data.handles
        return [int(found[number]) for number in range(found.count)]

    def _define_index(self) -> Any:
        tss = self._tss
        attributes = tss.TPMA_NV.AUTHREAD | tss.TPMA_NV.AUTHWRITE | tss.TPMA_NV.NO_DA
        public = tss.TPM2B_NV_PUBLIC(
            tss.TPMS_NV_PUBLIC(
                nvIndex=self._settings.nv_index,
                nameAlg=tss.TPM2_ALG.SHA256,
                attributes=attributes | (tss.TPM2_NT.COUNTER << tss.TPMA_NV.TPM2_NT_SHIFT),
                dataSize=8,
            )
        )
        index = self._esys.nv_define_space(None, public)
        self._esys.nv_increment(index, auth_handle=index)  # a counter can be read only after its first increment
        return index

    def _read_index(self, index: Any) -> int:
        return int.from_bytes(bytes(self._esys.nv_read(index, 8, auth_handle=index)), "big")

    @contextlib.contextmanager
    def _translate_errors(self, operation: str) -> Iterator[None]:
        """Raise the library's errors as TpmUnavailable."""
        try:
            yield
        except self._tss.TSS2_Exception as error:
            raise TpmUnavailable(
                f"cannot {operation} the TPM ({self._settings.tcti or 'of the system'}): {_describe_error(error)}",
                hint="check that the TPM is present and that this user may use it (group tss)",
            ) from error


def _selection(pcrs: tuple[int, ...]) -> str:
    return "sha256:" + ",".join(map(str, pcrs))


def _describe_error(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
