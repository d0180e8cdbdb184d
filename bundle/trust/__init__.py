"""Trust in metadata: decide which release a device may install, with The Update Framework (TUF).

Words: role (a set of keys with a threshold, and the document that they sign), target (a file that a role lists with
its length and digest), trust state (what the device stores between checks), time floor (the latest proven time).

Reading order:
    check.py          the theory of operation, and one whole check: `check`, `TrustSession`
    clock.py          the time that expiry is judged by
    trust_state.py    what is stored between checks, in two copies
    role_versions.py  the rule that no role is replaced by an older version
    offline_pack.py   the rule for repositories on removable media
    updater.py        python-tuf's client with our limits, transport, clock and errors
    role_names.py     names of roles, targets and extra fields
    public_keys.py    digests of public keys
"""
