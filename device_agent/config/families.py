"""Run a command for one family or for all families of a device, and combine the results.

Rules:
- A command for one family has the same result as on a device that follows only that family.
- A command for several families has the result {"families": [...]}: one row per family, in the order of the
  configuration, with `family` and either the fields of the result for one family, or `error`.
- An error in one family is reported in its row; the other families are still processed.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from bundle.errors import AirweightsError, Bug, InvalidUsage
from bundle.strict_json import StrictObject
from device_agent.errors import error_from_dict

logger = logging.getLogger(__name__)

T = TypeVar("T")


def check_family(families: Sequence[str], family: str | None) -> None:
    """Check that the device follows a family.

    Args:
        families: names of the families that the device follows.
        family: the name to check; None for all families.

    Raises:
        InvalidUsage: `family` is not one of `families`.
    """
    if family is not None and family not in families:
        raise InvalidUsage(f"this device does not follow family {family!r}", hint=f"name one of: {', '.join(families)}")


def require_one_family(families: Sequence[str], family: str | None) -> str:
    """Return the family that a command for one family is for.

    Args:
        families: names of the families that the device follows, at least one.
        family: the requested name, or None: the only family of the device.

    Raises:
        InvalidUsage: `family` is not one of `families`, or is None although there are several.
    """
    check_family(families, family)
    if family is None and len(families) > 1:
        raise InvalidUsage(
            f"this device follows {len(families)} families, but the command is for one",
            hint=f"name one with --family: {', '.join(families)}",
        )
    return families[0] if family is None else family


@dataclass(frozen=True, slots=True)
class FamilyResults(Generic[T]):
    """Results of a command, by family.

    Attributes:
        rows: name of the family and its result or error, in the order of the configuration. If there is only one row,
            it has a result.
    """

    rows: tuple[tuple[str, T | AirweightsError], ...]

    def values(self) -> tuple[T, ...]:
        """Return the results of all families.

        Raises:
            AirweightsError: the first error in `rows`.
        """
        found: list[T] = []
        for _, value in self.rows:
            if isinstance(value, AirweightsError):
                raise value
            found.append(value)
        return tuple(found)

    def as_json(self, value_json: Callable[[T], Mapping[str, object]]) -> dict[str, Any]:
        """Return the object that the command prints; `value_json` returns that of one result."""
        if len(self.rows) == 1:
            return dict(value_json(self.values()[0]))
        return {
            "families": [
                {"family": family, "error": value.as_dict()}
                if isinstance(value, AirweightsError)
                else {"family": family, **value_json(value)}
                for family, value in self.rows
            ]
        }

    def as_lines(self, value_lines: Callable[[T], Sequence[str]]) -> list[str]:
        """Format all results; the lines of several families are indented below their names."""
        if len(self.rows) == 1:
            return list(value_lines(self.values()[0]))
        lines = []
        for family, value in self.rows:
            own = [f"{value.reason}: {value.message}"] if isinstance(value, AirweightsError) else value_lines(value)
            lines += [f"{family}:", *(f"  {line}" for line in own)]
        return lines

    @classmethod
    def parse(
        cls, value: dict[str, Any], families: Sequence[str], parse_value: Callable[[StrictObject], T]
    ) -> "FamilyResults[T]":
        """Parse the output of `as_json`.

        Args:
            value: the parsed JSON object.
            families: names of the families that the command was for.
            parse_value: parses the result of one family.

        Raises:
            Malformed: a field is missing, unknown or has a wrong type.
        """
        fields = StrictObject(value, "result")
        if not fields.has("families"):
            return cls(((families[0], parse_value(fields)),))
        rows: list[tuple[str, T | AirweightsError]] = []
        for row in fields.objects("families", max_items=len(families)):
            family = row.text("family")
            rows.append((family, error_from_dict(row.value("error")) if row.has("error") else parse_value(row)))
        fields.reject_unknown()
        return cls(tuple(rows))


def per_family(families: Iterable[str], action: Callable[[str], T]) -> FamilyResults[T]:
    """Call `action` for each family; with several families, an error of one does not stop the others.

    Args:
        families: names of the families that the command is for.
        action: returns the result for one family.

    Raises:
        Bug: `action` raised it.
        AirweightsError: `families` is one family, and `action` raised the error.
    """
    chosen = tuple(families)
    if len(chosen) == 1:
        return FamilyResults(((chosen[0], action(chosen[0])),))
    return FamilyResults(tuple((family, _result_or_error(family, action)) for family in chosen))


def _result_or_error(family: str, action: Callable[[str], T]) -> T | AirweightsError:
    try:
        return action(family)
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s: %s", family, error.reason, error.message)
        return error
