"""Errors of stores: the places that published files are pushed to.

Choose the kind (bundle.errors) by how the caller must react: a wrong URL, missing or refused credentials are Invalid,
because the caller set them; a network that fails is Unavailable; a store that cannot keep publications whole is
Refused.
"""

from bundle.errors import Invalid, Refused, Unavailable


class StoreUrlInvalid(Invalid):
    """The URL names no store that this program can use. Use `file:`, `s3:`, `gs:`, `az:` or `oci:`."""

    reason = "store-url-invalid"


class StoreLibraryMissing(Invalid):
    """The library for this kind of store is not installed. Install the extra `s3`."""

    reason = "store-library-missing"


class StoreCredentialsMissing(Invalid):
    """No credentials for the store were found in the environment. Set the variables that the hint names."""

    reason = "store-credentials-missing"


class StoreCredentialsExpired(Unavailable):
    """The credentials of the store have expired. Get new ones, and run the command again."""

    reason = "store-credentials-expired"


class StoreCredentialsRefused(Invalid):
    """The store does not know the credentials, or their secret is wrong. Check both variables."""

    reason = "store-credentials-refused"


class StoreAccessDenied(Invalid):
    """The credentials are valid, but not for this bucket or action.
    Grant the permission, or correct the URL.
    """

    reason = "store-access-denied"


class StoreBucketMissing(Invalid):
    """The store has no bucket of this name. Create the bucket, or correct the URL."""

    reason = "store-bucket-missing"


class StoreClockSkewed(Unavailable):
    """The store refuses signatures because of this machine's clock.
    Set the clock, and run the command again.
    """

    reason = "store-clock-skewed"


class StoreUnavailable(Unavailable):
    """The store does not answer, or a request failed.
    Run the command again: it continues where it stopped.
    """

    reason = "store-unavailable"


class StoreRejected(Refused):
    """The store does not accept a file. Check the limits and rules of the store."""

    reason = "store-rejected"


class ConditionalPutsMissing(Refused):
    """The store ignores or refuses conditional puts, so two publishers could mix. Use another store."""

    reason = "conditional-puts-missing"


class StoreOtherRepository(Refused):
    """The store has the files of another repository. Correct the URL, or choose an empty prefix."""

    reason = "store-other-repository"


class PublicationUntrusted(Refused):
    """The pulled publication is not signed as the trusted root demands. Find out who wrote to the store."""

    reason = "publication-untrusted"


class RegistryDeletesDisabled(Refused):
    """The registry does not allow this program to delete manifests.
    Enable deletion there, or let a rule of the registry delete old tags `p-N`.
    """

    reason = "registry-deletes-disabled"
