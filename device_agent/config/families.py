"""Which of a device's families a command is for, and what it tells where that is all of them.

Rules:
1. A command for one family prints what it prints on a device that follows one.
2. A command for all of several prints {"families": [...]}: a row for each, in the order of the configuration, with
   `family` and either what the command prints for one, or `error`.
3. What fails for one family is told in its row, and keeps no other from its turn.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from bundle.errors import AirweightsError, Bug, InvalidUsage
from device_agent.errors import error_from_dict

logger = logging.getLogger(__name__)


def check_family(families: Sequence[str], family: str | None) -> None:
    """Raises UsageInvalid: the device does not follow such a family."""
    if family is not None and family not in families:
        raise InvalidUsage(f"no family {family!r} is followed here", hint=f"one of: {', '.join(families)}")


def require_one_family(families: Sequence[str], family: str | None) -> str:
    """For a command that is for one family. Raises UsageInvalid: there are several and none is named, or another is."""
    check_family(families, family)
    if family is None and len(families) > 1:
        raise InvalidUsage(
            f"this device follows {len(families)} families, name one with --family",
            hint=f"one of: {', '.join(families)}",
        )
    return families[0] if family is None else family


def per_family(families: Iterable[str], action: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Rules 1 to 3.

    Args:
        families: that the command is for.
        act: what it does for one.

    Raises:
        Bug: from `act`; with one family whatever it raises.
    """
    chosen = tuple(families)
    if len(chosen) == 1:
        return action(chosen[0])
    return {"families": [_run_for_family(family, action) for family in chosen]}


def _run_for_family(family: str, act: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"family": family, **act(family)}
    except Bug:
        raise
    except AirweightsError as error:
        logger.error("%s: %s: %s", family, error.reason, error.message)
        return {"family": family, "error": error.as_dict()}


def per_family_text(found: dict[str, Any], text_of: Callable[[dict[str, Any]], str]) -> str:
    """For a person: what `text_of` says, under each family's name where there are several."""
    if "families" not in found:
        return text_of(found)
    parts = []
    for row in found["families"]:
        error = row.get("error")
        said = text_of(row) if error is None else f"{error['reason']}: {error['message']}"
        parts.append(f"{row['family']}:\n" + "\n".join(f"  {line}" for line in said.splitlines()))
    return "\n".join(parts)


def highest_exit_code(found: dict[str, Any]) -> int:
    """Of a command that ran an attempt for each: the highest."""
    rows = found.get("families", [found])
    return max(int((row.get("error") or row).get("exit_code", 0)) for row in rows)


def total_cleared(found: dict[str, Any]) -> dict[str, Any]:
    """Of all families that were asked, as one number. Raises what the first one raised that could not be asked."""
    rows = found.get("families", [found])
    for row in rows:
        if "error" in row:
            raise error_from_dict(row["error"])
    return {"forgiven": sum(row["forgiven"] for row in rows)}
