"""The rollout that a device follows, as its reports and vitals name it."""

from dataclasses import dataclass

from bundle.acceptance import VerifiedRelease
from bundle.strict_json import JSON, NAME_PATTERN, SHA256_HEX_PATTERN, StrictObject


@dataclass(frozen=True, slots=True)
class FollowedRollout:
    """The rollout of a verified release.

    Attributes:
        repository: id of the repository, 64 hexadecimal digits.
        family: family of the release.
        channel: channel that the device follows.
        counter_epoch: counter epoch of the family.
        rollout: digest of the rollout, or None if the rollout that led to the release is not known any more.
    """

    repository: str
    family: str
    channel: str
    counter_epoch: int
    rollout: str | None

    @classmethod
    def from_release(cls, release: VerifiedRelease) -> "FollowedRollout":
        """Return the rollout that selected a release."""
        rollout = release.rollout
        return cls(release.repository_id, rollout.family, rollout.channel, release.counter_epoch, rollout.digest())

    def as_json(self) -> dict[str, JSON]:
        """Return the field `followed` of a journal record."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def parse(cls, fields: StrictObject) -> "FollowedRollout":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or out of range.
        """
        out = cls(
            fields.text("repository", SHA256_HEX_PATTERN),
            fields.text("family", NAME_PATTERN),
            fields.text("channel", NAME_PATTERN),
            fields.integer("counter_epoch"),
            fields.optional_text("rollout", SHA256_HEX_PATTERN),
        )
        fields.reject_unknown()
        return out


def parse_followed(fields: StrictObject) -> FollowedRollout | None:
    """Parse the field `followed` of a journal record; null is None.

    Raises:
        Malformed: the field is missing or does not follow its schema.
    """
    value = fields.value("followed")
    return None if value is None else FollowedRollout.parse(StrictObject(value, f"{fields.where}.followed"))
