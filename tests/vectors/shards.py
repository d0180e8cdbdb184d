"""Write the test vectors of envelope shards: `python -m tests.vectors.shards`.

The folder `shard` has shards (bundle.envelope_shard) with one defect each, and valid ones. `expected` (JSON) has the
reason of the expected refusal when NAME is looked up, or the envelope in hexadecimal. The files are assembled from the
parts of the format, without its encoder.
"""

import json
import struct
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent
NAME: Final = "40" * 32
NAMES: Final = ("10" * 32, NAME, "f0" * 32)
ENVELOPES: Final = (b"first", b"other", b"third")


def make_shard(
    names: tuple[str, ...] = NAMES,
    *,
    keys: tuple[str, ...] | None = None,
    count: int | None = None,
    size: int = 5,
    magic: bytes = b"AWSHARD1",
) -> bytes:
    """Return a shard.

    Args:
        names: names of the records, in their order.
        keys: names that the index is made of; None for those of the records.
        count: stated number of records; None for the right one.
        size: stated size of an envelope.
        magic: the first bytes.
    """
    index = b"".join(bytes.fromhex(name[:16]) for name in (names if keys is None else keys))
    records = b"".join(bytes.fromhex(name) + data for name, data in zip(names, ENVELOPES, strict=False))
    return magic + struct.pack(">II", len(names) if count is None else count, size) + index + records


def make_vectors() -> dict[str, tuple[bytes, str]]:
    """Return each shard by its name, with the expected reason, or the envelope of NAME in hexadecimal."""
    good = make_shard()
    return {
        "good": (good, ENVELOPES[1].hex()),
        "good-one-record": (make_shard((NAME,)), ENVELOPES[0].hex()),
        "empty": (b"", "shard-truncated"),
        "header-cut": (good[:15], "shard-truncated"),
        "index-cut": (good[:39], "shard-truncated"),
        "record-cut": (good[:-1], "shard-truncated"),
        "byte-added": (good + b"x", "shard-malformed"),
        "magic-of-another": (make_shard(magic=b"AWSHARD2"), "shard-malformed"),
        "no-records": (make_shard((), count=0), "shard-malformed"),
        "envelope-of-no-bytes": (make_shard(size=0), "shard-malformed"),
        "envelope-too-large": (make_shard(size=4097), "shard-malformed"),
        "count-too-large": (make_shard(count=2**32 - 1), "shard-too-large"),
        "count-too-small": (make_shard(count=2), "shard-malformed"),
        "names-descending": (make_shard(NAMES[::-1]), "shard-unsorted"),
        "name-twice": (make_shard((NAME, NAME, NAMES[2])), "shard-unsorted"),
        "record-of-another": (make_shard((NAMES[0], "41" * 32, NAMES[2]), keys=NAMES), "shard-mismatch"),
        "record-missing": (make_shard((NAMES[0], NAMES[2])), "not-found"),
    }


def main() -> None:
    """Write all files of the folder."""
    folder = FOLDER / "shard"
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.bin"):
        path.unlink()
    vectors = make_vectors()
    for name, (data, _) in vectors.items():
        (folder / f"{name}.bin").write_bytes(data)
    expected = {name: outcome for name, (_, outcome) in sorted(vectors.items())}
    (folder / "expected").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
