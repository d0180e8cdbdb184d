"""What can go wrong with keys.

AirweightsError
├── Invalid
│   ├── KeyMissing            key-missing            no such file
│   ├── KeyExists             key-exists             a key file is never written over
│   ├── KeyUnreadable         key-unreadable         not a key file, or of a kind that is not known here
│   │   └── KeyDamaged        key-damaged            its checksum does not hold
│   ├── WrongPassphrase       wrong-passphrase       the file is whole, the passphrase does not open it
│   ├── PassphraseMissing     passphrase-missing     none was given, and there is nobody to ask
│   ├── PlaintextKey          plaintext-key          a key would be written, or is, without encryption
│   ├── ThresholdInvalid      threshold-invalid      one algorithm alone could sign, or one lost key would be the end
│   ├── SignerNotInRole       signer-not-in-role     the key may not sign this
│   ├── CohortUnknown         cohort-unknown
│   ├── DeviceUnknown         device-unknown
│   ├── FingerprintMismatch   fingerprint-mismatch   what was confirmed is not what was requested
│   └── RegistryDamaged       registry-damaged       not the registry whose digest is signed, or not a registry
└── Unavailable
    ├── KeyServiceUnavailable  key-service-unavailable  no library, no credentials, no answer, or no such key
    └── TokenUnavailable      token-unavailable      no token, no library, wrong PIN, or it was removed
        └── WrongPin          wrong-pin
"""

from bundle.errors import Invalid, Unavailable


class KeyMissing(Invalid):
    """No such key file."""

    reason = "key-missing"


class KeyExists(Invalid):
    """A key file is never written over."""

    reason = "key-exists"


class KeyUnreadable(Invalid):
    """Not a key file, or one of a kind that is not known here."""

    reason = "key-unreadable"


class KeyDamaged(KeyUnreadable):
    """A key file whose checksum does not hold."""

    reason = "key-damaged"


class WrongPassphrase(Invalid):
    """The key file is whole, and the passphrase does not open it."""

    reason = "wrong-passphrase"


class PassphraseMissing(Invalid):
    """A passphrase is needed, none was given, and there is nobody to ask."""

    reason = "passphrase-missing"


class PlaintextKey(Invalid):
    """A signing key would be written without encryption, or lies there so."""

    reason = "plaintext-key"


class ThresholdInvalid(Invalid):
    """Keys and threshold of a role that break the hybrid rule."""

    reason = "threshold-invalid"


class SignerNotInRole(Invalid):
    """A key that none of the roles at hand lists."""

    reason = "signer-not-in-role"


class CohortUnknown(Invalid):
    """No cohort of that name."""

    reason = "cohort-unknown"


class DeviceUnknown(Invalid):
    """No device of that id or label."""

    reason = "device-unknown"


class FingerprintMismatch(Invalid):
    """The fingerprint that was confirmed is not the request's."""

    reason = "fingerprint-mismatch"


class RegistryDamaged(Invalid):
    """Not a device registry, or not the one whose digest is signed."""

    reason = "registry-damaged"


class TokenUnavailable(Unavailable):
    """A hardware token that is not there, or does not answer."""

    reason = "token-unavailable"


class WrongPin(TokenUnavailable):
    """The token refuses the PIN."""

    reason = "wrong-pin"


class KeyServiceUnavailable(Unavailable):
    """A cloud's key service that does not answer, has no such key, or whose library is not installed."""

    reason = "key-service-unavailable"
