"""Key files for every role of a new repository.

Rules:
1. Root and targets: two keys of each kind, threshold 3 of 4. Every other role: one of each, threshold 2 of 2.
2. Classical only: root and targets three Ed25519 keys, every other role one.
3. A file is named after its role, its algorithm and a number. In earnest, each belongs on another machine or token; one
   folder with all of them is for trying things out.
"""

from collections.abc import Sequence
from pathlib import Path

from securesystemslib.signer import Signer

from bundle.frames import Secret
from keys.key_files import KEY_FILE_SUFFIX, generate_key_file, load_signer
from keys.roles import OFFLINE_ROLES


def key_plan(role: str, *, classical: bool) -> tuple[str, ...]:
    """Algorithms of a role's keys (rules 1 and 2)."""
    if classical:
        return ("ed25519",) * (3 if role in OFFLINE_ROLES else 1)
    return ("ed25519", "ml-dsa-65") * (2 if role in OFFLINE_ROLES else 1)


def make_role_keys(
    key_dir: Path,
    roles: Sequence[str],
    passphrase: Secret | None,
    *,
    classical: bool = False,
    insecure_plaintext: bool = False,
) -> dict[str, list[Signer]]:
    """Make the key files of some roles. Returns role → signers. Raises KeyExists, PlaintextKey."""
    out: dict[str, list[Signer]] = {}
    made: list[Path] = []
    try:
        for role in roles:
            for path, algorithm in key_paths(key_dir, role, classical=classical):
                generate_key_file(path, algorithm, passphrase, insecure_plaintext=insecure_plaintext)
                made.append(path)
                out.setdefault(role, []).append(load_signer(path, passphrase))
    except BaseException:
        for path in made:
            path.unlink()
        raise
    return out


def key_paths(key_dir: Path, role: str, *, classical: bool) -> list[tuple[Path, str]]:
    """File and algorithm of each key of a role (rule 3)."""
    plan = key_plan(role, classical=classical)
    numbers = [plan[: place + 1].count(algorithm) for place, algorithm in enumerate(plan)]
    return [
        (key_dir / f"{role}-{algorithm}-{number}{KEY_FILE_SUFFIX}", algorithm)
        for algorithm, number in zip(plan, numbers, strict=True)
    ]
