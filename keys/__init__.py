"""Signing keys, cohort keys and the device registry: what can sign a release or enroll a device.

The device agent never imports this package.

Words: key file (one private key, encrypted), key URI (names a key in a PKCS#11 token or a cloud key service), role
(a TUF role: its public keys and the threshold of signatures), cohort (devices that share a key pair), epoch (the
number of that key pair).

Reading order:
    key_files           write and read key files
    uris                choose by the URI's scheme: tokens (PKCS#11) or services (AWS, Google Cloud, Azure, Vault)
    signers             load signers from files, folders and URIs
    passphrase          read passphrases and PINs
    roles               the hybrid rule for a role's keys and threshold
    cohorts             the key pair of a cohort's epoch, and its envelopes for devices
    registry            the enrolled devices
    enrollment_batch    a signed list of enrollment requests
    cli                 `packager keys new`, `show`, `public` and `check`
    errors              every error class of this package
"""
