"""Distinguish metadata of another repository from wrong metadata: compare the first roots.

The comparison only chooses a better message: nothing is accepted because of it.
"""

from bundle.errors import AirweightsError, AnotherRepository
from bundle.trust.repository_id import repository_id_of
from bundle.trust.updater import MAX_ROOT_BYTES, Fetch

SHOWN_CHARACTERS = 16


def check_same_repository(metadata_url: str, expected_id: str, fetch: Fetch) -> None:
    """Compare the first root that is published at a URL with the device's repository.

    Args:
        metadata_url: base URL of the metadata files.
        expected_id: id of the device's repository.
        fetch: the transport.

    Raises:
        AnotherRepository: another first root is published. A root that cannot be fetched or parsed proves nothing.
    """
    try:
        found = repository_id_of(fetch(f"{metadata_url}/1.root.json", MAX_ROOT_BYTES))
    except AirweightsError:
        return
    if expected_id and found != expected_id:
        raise AnotherRepository(
            f"{metadata_url.removesuffix('/metadata')}: another repository is published here: repository "
            f"{found[:SHOWN_CHARACTERS]}, this device was made for {expected_id[:SHOWN_CHARACTERS]}",
            hint="check `repository_url`, and what listens at that address",
        )
