"""Times and shares as people write them: `30s`, `15m`, `24h`, `3d`, and `1%`, `0.5%`.

Pure: standard library only.
"""

import re
from decimal import Decimal
from typing import Final

from bundle.errors import Malformed

UNIT_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
DURATION_PATTERN: Final = re.compile(r"([0-9]{1,9})([smhd])")
SHARE_PATTERN: Final = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,4})?) ?%?")


def parse_duration(text: str, where: str) -> int:
    """Return the seconds of a duration such as `24h`.

    Args:
        text: a whole number and a unit: s, m, h or d.
        where: name of the value in error messages.

    Raises:
        Malformed: the text is not a duration.
    """
    found = DURATION_PATTERN.fullmatch(text.strip())
    if found is None:
        raise Malformed(f"{where}: found {text[:40]!r}, expected a duration such as 30s, 15m, 24h or 3d")
    return int(found[1]) * UNIT_SECONDS[found[2]]


def parse_share(text: str, where: str, *, per: int) -> int:
    """Return a share in parts of `per`.

    Args:
        text: a percentage such as `1%` or `0.5`.
        where: name of the value in error messages.
        per: parts of the whole: 10,000 for basis points, 1,000,000 for parts per million.

    Raises:
        Malformed: the text is not a percentage, is above 100 %, or is not a whole number of parts.
    """
    found = SHARE_PATTERN.fullmatch(text.strip())
    parts = None if found is None else Decimal(found[1]) * per / 100
    if parts is None or parts > per or parts != int(parts):
        raise Malformed(f"{where}: found {text[:40]!r}, expected a percentage such as 1% or 0.5%")
    return int(parts)
