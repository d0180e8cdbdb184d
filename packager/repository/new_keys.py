"""Create the key files of a new repository's roles.

- Root and targets get two keys of each kind, threshold 3 of 4. Other roles get one of each kind, threshold 2 of 2.
- In a classical-only repository, root and targets get three Ed25519 keys, every other role one.
- A file is named ROLE-ALGORITHM-NUMBER.key. In production each key belongs on another machine or token; one folder with
  all of them is for evaluation only.
"""

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import Signer

from bundle.frames import Secret
from keys.key_files import KEY_FILE_SUFFIX, generate_key_file, load_signer
from keys.roles import OFFLINE_ROLES


def key_plan(role: str, *, classical: bool) -> tuple[str, ...]:
    """Return the algorithm of each key of a new role.

    Args:
        role: name of the role.
        classical: the repository has no ML-DSA keys.
    """
    if classical:
        return ("ed25519",) * (3 if role in OFFLINE_ROLES else 1)
    return ("ed25519", "ml-dsa-65") * (2 if role in OFFLINE_ROLES else 1)


def create_role_keys(
    key_dir: Path,
    roles: Sequence[str],
    passphrase: Secret | None,
    *,
    classical: bool = False,
    insecure_plaintext: bool = False,
) -> dict[str, list[Signer]]:
    """Create the key files of some roles; delete them again if one fails.

    Args:
        key_dir: folder for the key files.
        roles: names of the roles.
        passphrase: encrypts the key files; None only with `insecure_plaintext`.
        classical: create no ML-DSA keys.
        insecure_plaintext: write the key files without encryption.

    Returns:
        Role → its signers.

    Raises:
        KeyExists: a key file exists.
        PlaintextKey: there is no passphrase, and `insecure_plaintext` is not set.
    """
    out: dict[str, list[Signer]] = {}
    created: list[Path] = []
    try:
        for role in roles:
            for path, algorithm in key_paths(key_dir, role, classical=classical):
                generate_key_file(path, algorithm, passphrase, insecure_plaintext=insecure_plaintext)
                created.append(path)
                out.setdefault(role, []).append(load_signer(path, passphrase))
    except BaseException:
        for path in created:
            path.unlink()
        raise
    return out


def key_paths(key_dir: Path, role: str, *, classical: bool) -> list[tuple[Path, str]]:
    """Return the path and the algorithm of each key of a new role.

    Args:
        key_dir: folder for the key files.
        role: name of the role.
        classical: the repository has no ML-DSA keys.
    """
    plan = key_plan(role, classical=classical)
    numbers = [plan[: index + 1].count(algorithm) for index, algorithm in enumerate(plan)]
    return [
        (key_dir / f"{role}-{algorithm}-{number}{KEY_FILE_SUFFIX}", algorithm)
        for algorithm, number in zip(plan, numbers, strict=True)
    ]
