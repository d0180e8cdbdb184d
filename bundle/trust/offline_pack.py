"""The rule for metadata of offline packs: accepted from the file system only, for a limited time.

An offline pack is a copy of a repository whose online roles are signed with a long validity, for devices without a
network. A server must not be able to replay it, because its timestamp stays valid for weeks instead of a day.
"""

from typing import Final

from tuf.api.metadata import Root, Signed

from bundle.errors import OfflinePackRefused
from bundle.trust.clock import ISSUED_AT_FIELD, parse_time
from bundle.trust.role_names import PACK_FIELD, PACK_MAX_DAYS_FIELD

DAY_S: Final = 86_400


def is_file_url(url: str) -> bool:
    """Return whether a repository is read from the file system."""
    return url.startswith("file:")


def check_pack_role(role: str, document: Signed, root: Root, metadata_url: str) -> None:
    """Check the document of one role if it belongs to an offline pack (field `x-pack`).

    Args:
        role: name of the role, for the error.
        document: its verified document.
        root: the verified root; `x-pack-max-days` limits the validity, in days.
        metadata_url: URL that the metadata came from.

    Raises:
        OfflinePackRefused: the document came from a server, or is valid for longer than root allows.
    """
    if PACK_FIELD not in document.unrecognized_fields:
        return
    if not is_file_url(metadata_url):
        raise OfflinePackRefused(
            f"{role} belongs to an offline pack and came from {metadata_url}, expected a file: URL"
        )
    issued = parse_time(document.unrecognized_fields.get(ISSUED_AT_FIELD))
    limit = root.unrecognized_fields.get(PACK_MAX_DAYS_FIELD, 0)
    if issued is None or not isinstance(limit, int) or int(document.expires.timestamp()) - issued > limit * DAY_S:
        raise OfflinePackRefused(f"{role} of the offline pack is valid for more than the {limit} days that root allows")
