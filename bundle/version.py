"""The version of the distribution, and the comparison of dotted version numbers."""

from typing import Final

VERSION: Final = "0.1.0"


def parse_dotted_version(version: str) -> tuple[int, ...]:
    """Parse a dotted version such as "1.24.0" into numbers that compare as versions do.

    Only the leading digits of a part count ("0rc1" is 0), and zeros at the end are dropped, so "1.24" equals "1.24.0".
    """
    parts = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        parts.append(int(digits) if digits else 0)
    while parts and parts[-1] == 0:
        parts.pop()
    return tuple(parts)
