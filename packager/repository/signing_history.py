"""A signer's own copies of what its keys signed; no build machine can change them.

    HISTORY/REPOSITORY/ROLE.json     the document of the role that was signed last
    HISTORY/REPOSITORY/keys.json     SHA-256 of each public key that signed for this repository

REPOSITORY is the SHA-256 of the signed part of the repository's first root, in hexadecimal.

The keys are recorded so that a key of one repository signs for another one only on request: a forged request that
claims to be of another repository would otherwise be compared with an empty history.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from securesystemslib.signer import Key

from bundle.strict_json import SHA256_HEX_PATTERN
from bundle.trust.public_keys import key_digest
from packager.errors import SigningHistoryDamaged
from packager.repository import tuf_documents
from packager.repository.layout import write_file
from packager.repository.published import Document, parse_document

KEYS_FILE: Final = "keys.json"


class SigningHistory:
    """The signing history of one repository.

    Args:
        folder: the folder of the histories of all repositories; it need not exist.
        identity: SHA-256 of the signed part of the repository's first root, hexadecimal.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity

    @property
    def has_signed_before(self) -> bool:
        """True if this machine signed documents of this repository before."""
        return (self._folder / self._identity).is_dir()

    def last_document(self, role: str) -> Document | None:
        """Return the document of a role that was signed last, or None.

        Raises:
            SigningHistoryDamaged: its file cannot be read.
        """
        path = self._folder / self._identity / f"{role}.json"
        try:
            return parse_document(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise SigningHistoryDamaged(
                f"cannot read {path}, the document of role {role} that was signed last",
                hint="restore the file from a backup",
            ) from error

    def other_repositories(self, keys: Iterable[Key]) -> tuple[str, ...]:
        """List other repositories for which one of these keys signed on this machine, sorted.

        Raises:
            SigningHistoryDamaged: a file of recorded keys cannot be read.
        """
        digests = {key_digest(key) for key in keys}
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        others = (path for path in folders if SHA256_HEX_PATTERN.fullmatch(path.name) and path.name != self._identity)
        return tuple(path.name for path in others if digests & _read_keys(path / KEYS_FILE))

    def record_document(self, role: str, document: Document) -> None:
        """Record a document as the last signed one of its role, synced.

        Args:
            role: name of the role.
            document: the document as it was signed.
        """
        write_file(self._folder / self._identity / f"{role}.json", tuf_documents.serialize(document))

    def record_keys(self, keys: Iterable[Key]) -> None:
        """Record keys as signers of this repository, synced."""
        path = self._folder / self._identity / KEYS_FILE
        known = _read_keys(path)
        now = known | {key_digest(key) for key in keys}
        if now != known:
            write_file(path, json.dumps(sorted(now)).encode())


def _read_keys(path: Path) -> set[str]:
    try:
        found = json.loads(path.read_bytes())
        return {str(entry) for entry in found}
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError) as error:
        raise SigningHistoryDamaged(
            f"cannot read {path}, the keys that signed before", hint="restore the file from a backup"
        ) from error
