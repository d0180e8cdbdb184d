"""The repository id, which envelopes, reports and signing requests name (docs/format.md section 2).

Rules:
- It is the SHA-256 of the canonical JSON of the signed part of root 1, so that white space, a line end or the order of
  keys in a copy of the file does not change it.
- Every later root names it in the field REPOSITORY_ID_FIELD (bundle.trust.role_names).
"""

import hashlib

from tuf.api.metadata import Metadata, Root
from tuf.api.serialization import DeserializationError

from bundle.errors import Malformed


def repository_id_of(first_root: bytes) -> str:
    """Return the id of the repository that begins with a root, 64 hexadecimal digits.

    Args:
        first_root: the file of root 1, in any JSON layout.

    Raises:
        Malformed: the bytes are not TUF root metadata.
    """
    try:
        document = Metadata[Root].from_bytes(first_root)
    except DeserializationError as error:
        raise Malformed(f"first root: not TUF metadata: {error}") from error
    if document.signed.type != "root":
        raise Malformed(f"first root: found metadata of type {document.signed.type!r}, expected root")
    return hashlib.sha256(document.signed_bytes).hexdigest()
