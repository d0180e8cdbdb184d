"""Run a command for one family or for all families of a device, and combine the results.

Rules:
- A command for one family has the same result as on a device that follows only that family.
- A command for several families has the result {"families": [...]}: one row per family, in the order of the
  configuration, with `family` and either the fields of the result for one family, or `error`.
- An error in one family is reported in its row; the other families are still processed.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bundle.errors import AirweightsError, Bug, InvalidUsage
from device_agent.errors import error_from_dict

logger = logging.getLogger(__name__)


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


def per_family(families: Iterable[str], action: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Call `action` for each family and combine the results as this module's rules say.

    Args:
        families: names of the families that the command is for.
        action: returns the result for one family.

    Raises:
        Bug: `action` raised it.
        AirweightsError: `families` is one family, and `action` raised the error.
    """
    chosen = tuple(families)
    if len(chosen) == 1:
        return action(chosen[0])
    return {"families": [_run_for_family(family, action) for family in chosen]}


def _run_for_family(family: str, action: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"family": family, **action(family)}
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s: %s", family, error.reason, error.message)
        return {"family": family, "error": error.as_dict()}


def per_family_text(found: dict[str, Any], text_of: Callable[[dict[str, Any]], str]) -> str:
    """Format a result as text; the texts of several families are indented below their names.

    Args:
        found: a result of `per_family`.
        text_of: formats the result for one family.
    """
    if "families" not in found:
        return text_of(found)
    parts = []
    for row in found["families"]:
        error = row.get("error")
        text = text_of(row) if error is None else f"{error['reason']}: {error['message']}"
        parts.append(f"{row['family']}:\n" + "\n".join(f"  {line}" for line in text.splitlines()))
    return "\n".join(parts)


def highest_exit_code(found: dict[str, Any]) -> int:
    """Return the highest exit code of the rows of a result of `per_family`."""
    rows = found.get("families", [found])
    return max(int((row.get("error") or row).get("exit_code", 0)) for row in rows)


def total_cleared(found: dict[str, Any]) -> dict[str, Any]:
    """Return {"cleared": N} with the sum over the rows of a result of `per_family`.

    Raises:
        AirweightsError: the error of the first row that has one.
    """
    rows = found.get("families", [found])
    for row in rows:
        if "error" in row:
            raise error_from_dict(row["error"])
    return {"cleared": sum(row["cleared"] for row in rows)}
