"""The members of a rollout's census, fixed at the follower's first look.

Theory. A device is a member if a line of it arrived in the days before the rollout began. A collector that hides those
lines of the devices that failed would take them out of the census, where they are not even silent. So the follower
writes down the members when it looks first, before the collector can know many results, and keeps to them.

Rules:
- The file `census/FAMILY.CHANNEL.members` of the follower's folder has a line with plan, beginning of the rollout and
  number of members, then an id a line. It is written once for each plan and beginning, whole or not at all.
- A member whose lines are gone stays a member: it is silent. A device that is not among them never becomes one.
- A file that is damaged is refused, not taken anew.
"""

from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import Refused
from bundle.local_files import read_local_file
from bundle.strict_json import SHA256_HEX_PATTERN, StrictObject
from packager.errors import CensusDamaged
from packager.follow.look import ChannelView
from packager.repository.layout import write_file

SCHEMA: Final = "airweights.members/1"
FOLDER: Final = "census"
MAX_BYTES: Final = 1 << 30
MAX_HEAD_BYTES: Final = 1_000


def fix_members(root: Path, view: ChannelView, now_s: int, *, is_written: bool) -> None:
    """Let the census of a view keep to the members of the first look.

    Args:
        root: folder of the follower.
        view: the view, with the lines so far.
        now_s: the time of the look, Unix seconds; before the rollout begins, nothing is fixed.
        is_written: write the members of a first look.

    Raises:
        CensusDamaged: the file of the members is damaged.
    """
    if view.census.are_members_fixed or now_s < view.began_s:
        return
    path = root / FOLDER / f"{view.plan.family}.{view.plan.channel}.members"
    try:
        data = read_local_file(path, MAX_BYTES)
    except FileNotFoundError:
        data = b""
    members = _read(data, view, path) if data else None
    if members is None:
        members = view.census.members()
        if is_written:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, _encode(view, members))
    view.census.fix_members(members)


def _encode(view: ChannelView, members: frozenset[str]) -> bytes:
    head = strict_json.encode(
        {"schema": SCHEMA, "plan": view.plan.digest(), "began_s": view.began_s, "members": len(members)}
    )
    return b"\n".join([head, *(name.encode() for name in sorted(members))]) + b"\n"


def _read(data: bytes, view: ChannelView, path: Path) -> frozenset[str] | None:
    """Return the members of a file, or None if it is of another rollout."""
    lines = data.split(b"\n")
    try:
        fields = StrictObject(strict_json.decode(lines[0], what="members", max_bytes=MAX_HEAD_BYTES), "members")
        fields.choice("schema", (SCHEMA,))
        rollout = (fields.text("plan", SHA256_HEX_PATTERN), fields.integer("began_s"))
        count = fields.integer("members")
        fields.reject_unknown()
    except Refused as error:
        raise _damaged(path) from error
    if rollout != (view.plan.digest(), view.began_s):
        return None
    members = frozenset(line.decode("ascii", "replace") for line in lines[1:-1])
    if lines[-1] or len(members) != count or not all(SHA256_HEX_PATTERN.fullmatch(name) for name in members):
        raise _damaged(path)
    return members


def _damaged(path: Path) -> CensusDamaged:
    return CensusDamaged(
        f"{path}: not the members of a census",
        hint="restore it from a backup; without it, the members are taken from the lines that the collector has now",
    )
