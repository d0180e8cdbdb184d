"""Errors about keys, tokens, cohorts and devices; docs/errors.md is generated from these classes.

Choose the kind (bundle.errors) by how the caller must react, and the class by the cause: a missing or unreadable key is
Invalid, because the caller named it; a token or a key service is Unavailable, because it may respond later. The class
name is the reason in CamelCase. A docstring's first sentence is the meaning, the second one says what to do.
"""

from bundle.errors import EnrollmentRefused, Invalid, Unavailable


class KeyMissing(Invalid):
    """The key file, passphrase file or key folder does not exist.
    Correct the path, or restore it from a backup.
    """

    reason = "key-missing"


class KeyExists(Invalid):
    """The key or file to create exists already, and keys are never overwritten.
    Choose another name or key id.
    """

    reason = "key-exists"


class KeyUnreadable(Invalid):
    """The file or URI is not a key, or the key has an unsupported algorithm.
    Name a key of one of the listed algorithms.
    """

    reason = "key-unreadable"


class KeyDamaged(KeyUnreadable):
    """The key file is damaged: its checksum or its content is wrong. Restore the file from a backup."""

    reason = "key-damaged"


class WrongPassphrase(Invalid):
    """The passphrase does not open the key file.
    Give the right passphrase, or replace the key in its roles.
    """

    reason = "wrong-passphrase"


class PassphraseMissing(Invalid):
    """No usable passphrase was given, and there is no terminal for a prompt.
    Give one of at least eight characters, in a file of mode 600.
    """

    reason = "passphrase-missing"


class PlaintextKey(Invalid):
    """The private key would be written without encryption.
    Give a passphrase, or pass `--insecure-plaintext`.
    """

    reason = "plaintext-key"


class ThresholdInvalid(Invalid):
    """A role's keys and threshold break the hybrid rule.
    Add keys of the other kind, or choose another threshold.
    """

    reason = "threshold-invalid"


class SignerNotInRole(Invalid):
    """No role that signs this document lists the key.
    Use a key of the role; `packager repo status` lists them.
    """

    reason = "signer-not-in-role"


class CohortUnknown(Invalid):
    """The cohort, or the private key of its current epoch, does not exist.
    Create it: `packager device rotate-cohort`.
    """

    reason = "cohort-unknown"


class DeviceUnknown(Invalid):
    """The registry has no device of that id or label. Take a label from `packager device list`."""

    reason = "device-unknown"


class FingerprintMismatch(Invalid):
    """The confirmed fingerprint is not that of the enrollment request.
    Compare it with the device's own output again.
    """

    reason = "fingerprint-mismatch"


class DuplicateRequest(EnrollmentRefused):
    """Two requests of a batch have one label, or are of one device.
    Run `device-agent relabel` on one device, or remove one request.
    """

    reason = "duplicate-request"


class RegistryDamaged(Invalid):
    """The device registry is damaged, or is not the one that the fleet document signs.
    Restore it from a backup.
    """

    reason = "registry-damaged"


class TokenUnavailable(Unavailable):
    """The hardware token is missing or does not respond.
    Insert it, and check its label, key id and library.
    """

    reason = "token-unavailable"


class WrongPin(TokenUnavailable):
    """The token rejected the PIN. Give the right PIN; a token locks itself after a few wrong ones."""

    reason = "wrong-pin"


class KeyServiceUnavailable(Unavailable):
    """The cloud key service cannot be used: no library, credentials, response or key.
    Check its library and credentials.
    """

    reason = "key-service-unavailable"
