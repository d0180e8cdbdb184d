"""What was signed in a place before: a signer's own copies, which no build machine can touch.

    memory/<repository>/<role>.json      the document that was signed last
    memory/<repository>/keys.json        SHA-256 of the public keys that signed for this repository here

Rules:
1. A repository is known by its first root's signed part (packager.repository.signing_request rule 2).
2. A key that signed for one repository here does not sign for another one unless that is said: a request that only
   claims to be of another repository would find no memory to be compared with.
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
    """One repository's part of the memory in a folder, which need not be there yet."""

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder, self._identity = folder, identity

    @property
    def has_signed_before(self) -> bool:
        """Was anything of this repository signed here?"""
        return (self._folder / self._identity).is_dir()

    def last_document(self, role: str) -> Document | None:
        """The document of a role that was signed last. Raises SignerMemoryDamaged."""
        path = self._folder / self._identity / f"{role}.json"
        try:
            return parse_document(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise SigningHistoryDamaged(
                f"{path}, what was signed here last, cannot be read", hint="restore it from a backup"
            ) from error

    def other_repositories(self, keys: Iterable[Key]) -> tuple[str, ...]:
        """Other repositories that one of these keys signed for here (rule 2), sorted."""
        held = {key_digest(key) for key in keys}
        folders = sorted(self._folder.iterdir()) if self._folder.is_dir() else []
        others = (path for path in folders if SHA256_HEX_PATTERN.fullmatch(path.name) and path.name != self._identity)
        return tuple(path.name for path in others if held & _read_keys(path / KEYS_FILE))

    def record_document(self, role: str, document: Document) -> None:
        """This document of the role is being signed."""
        write_file(self._folder / self._identity / f"{role}.json", tuf_documents.serialize(document))

    def record_keys(self, keys: Iterable[Key]) -> None:
        """These keys sign for this repository."""
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
        raise SigningHistoryDamaged(f"{path} cannot be read", hint="restore it from a backup") from error
