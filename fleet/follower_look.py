"""The last look of the follower at a rollout, for the page: what it counted and decided.

The follower writes a file `looks/FAMILY.CHANNEL.json` of the repository, and the collector shows it. Nothing decides
from it: it is not signed. What was decided is in the signed rollout, and why in its evidence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bundle import strict_json
from bundle.errors import AirweightsError
from bundle.local_files import read_local_file
from bundle.rendering import render_line
from bundle.stopping.counts import Counts, parse_counts
from bundle.strict_json import JSON, NAME_PATTERN, VERSION_PATTERN, StrictObject

SCHEMA: Final = "airweights.look/1"
FOLDER: Final = "looks"
MAX_LOOK_BYTES: Final = 64 * 1024
MAX_TEXT: Final = 1_000
MAX_NUMBER: Final = 2**53
WORDS: Final = ("halt", "go", "grow", "wait", "ask")


@dataclass(frozen=True, slots=True)
class FollowerLook:
    """One look of the follower at a planned rollout.

    Attributes:
        family: name of the family.
        channel: name of the channel.
        release: version of the plan's release.
        at_s: time of the look, Unix seconds.
        counts: what the follower counted.
        word: its decision, one of WORDS.
        reason: reason of the decision.
        text: one line for people.
        numbers: the numbers that the decision rests on, by name.
    """

    family: str
    channel: str
    release: str
    at_s: int
    counts: Counts
    word: str
    reason: str
    text: str
    numbers: Mapping[str, int] = field(default_factory=dict)

    def path(self, folder: Path) -> Path:
        """Return the path of its file below the repository's folder."""
        return folder / FOLDER / f"{self.family}.{self.channel}.json"

    def as_bytes(self) -> bytes:
        """Return the content of its file."""
        numbers: dict[str, JSON] = dict(self.numbers)
        return strict_json.encode(
            {
                "schema": SCHEMA,
                "family": self.family,
                "channel": self.channel,
                "release": self.release,
                "at_s": self.at_s,
                "counts": self.counts.as_json(),
                "word": self.word,
                "reason": self.reason,
                "text": render_line(self.text)[:MAX_TEXT],
                "numbers": numbers,
            }
        )


def parse_look(data: bytes) -> FollowerLook:
    """Parse the output of `FollowerLook.as_bytes`.

    Raises:
        Malformed, TooLarge: the data does not follow its schema.
    """
    fields = StrictObject(strict_json.decode(data, what="look", max_bytes=MAX_LOOK_BYTES), "look")
    fields.choice("schema", (SCHEMA,))
    numbers = fields.object("numbers")
    out = FollowerLook(
        family=fields.text("family", NAME_PATTERN),
        channel=fields.text("channel", NAME_PATTERN),
        release=fields.text("release", VERSION_PATTERN),
        at_s=fields.integer("at_s"),
        counts=parse_counts(fields.object("counts")),
        word=fields.choice("word", WORDS),
        reason=fields.text("reason", NAME_PATTERN),
        text=fields.text("text"),
        numbers={name: numbers.integer(name, -MAX_NUMBER, MAX_NUMBER) for name in numbers.remaining_names()},
    )
    fields.reject_unknown()
    return out


def read_looks(folder: Path) -> Iterator[FollowerLook]:
    """Iterate over the looks of a repository; a file that cannot be read or is damaged is left out.

    Args:
        folder: the repository's folder.
    """
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            yield parse_look(read_local_file(path, MAX_LOOK_BYTES))
        except (AirweightsError, OSError):
            continue
