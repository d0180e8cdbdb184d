"""Device keys: where they are stored, how they are sealed, and how a device is initialized.

Words:
    identity: the device's id, label and public keys.
    key storage: where the private keys are stored: files, a TPM or a PKCS#11 token; named by a URI
        (device_agent.config.key_storage).
    sealed: encrypted so that only this TPM or token can open it.
    use: which key a file contains: the device key, the signing key or the storage key.
    TPM counter: the monotonic counter in a TPM that backs the rollback floor.

Reading order:
    device_keys.py  creates, reads and moves the keys
    sealed_key.py   key files that only a TPM or token can open
    tpm.py          the TPM operations
    label.py        the device's name for people: its form and its default
    provision.py    `device-agent init`, `relabel` and `identity move`
"""
