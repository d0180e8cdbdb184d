"""The object of `history`, with its JSON form (device_agent.policy.status_report)."""

from dataclasses import dataclass, replace
from typing import Any

from bundle.strict_json import StrictObject
from device_agent.policy.attempt import UpdateResult
from device_agent.policy.status_report import MAX_ROWS


@dataclass(frozen=True, slots=True)
class UpdateHistory:
    """Finished attempts, newest first."""

    results: tuple[UpdateResult, ...]

    def newest(self, limit: int) -> "UpdateHistory":
        """Return the newest `limit` attempts."""
        return replace(self, results=self.results[:limit])

    def as_json(self) -> dict[str, Any]:
        """Return the object of `history --json` for one family."""
        return {"history": [row.as_json() for row in self.results]}

    @classmethod
    def parse(cls, fields: StrictObject) -> "UpdateHistory":
        """Parse the output of `as_json`.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        found = cls(tuple(UpdateResult.from_json(row) for row in fields.objects("history", max_items=MAX_ROWS)))
        fields.reject_unknown()
        return found
