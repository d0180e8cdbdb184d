"""Write the test vectors of archives: `python -m tests.vectors.archives`.

The folder `archive` has archives (bundle.archive) with one defect each, and valid ones. `expected` (JSON) has the
reason of the expected refusal; of a valid archive, its members: path → content as text. The files are assembled from
the parts of the format, without its encoder. They are decoded with a limit of MAX_BYTES.
"""

import json
import struct
from pathlib import Path
from typing import Final

import zstandard

from bundle.archive import MAGIC, MAX_MEMBERS, WINDOW_LOG
from bundle.strict_json import JSON

FOLDER: Final = Path(__file__).parent
MAX_BYTES: Final = 1 << 16
MEMBERS: Final = {"metadata/7.snapshot.json": b'{"sig": "%s"}' % (b"0a" * 40), "targets/fleet/fleet.json": b"{}"}


def pack(text: bytes, *rows: tuple[int, int], runs: bytes = b"") -> bytes:
    """Return a packed document.

    Args:
        text: all text.
        rows: length of the text before a run, and bytes of the run.
        runs: all runs.
    """
    return struct.pack(">I", len(rows)) + b"".join(struct.pack(">HH", *row) for row in rows) + text + runs


def compress(packed: bytes, *, window_log: int = 12, has_size: bool = True) -> bytes:
    """Return one zstd frame.

    Args:
        packed: its content.
        window_log: base-2 logarithm of its window.
        has_size: whether the frame states its content size.
    """
    parameters = zstandard.ZstdCompressionParameters(window_log=window_log, write_content_size=has_size)
    return zstandard.ZstdCompressor(compression_params=parameters).compress(packed)


def write_member(path: bytes, content: bytes) -> bytes:
    """Return a member.

    Args:
        path: its path.
        content: its content.
    """
    return struct.pack(">H", len(path)) + path + struct.pack(">I", len(content)) + content


def write_archive(*members: tuple[bytes, bytes], magic: bytes = MAGIC) -> bytes:
    """Return an archive without runs.

    Args:
        members: paths and contents, in their order.
        magic: the first bytes of the content.
    """
    return compress(pack(magic + b"".join(write_member(*member) for member in members)))


def make_vectors() -> dict[str, tuple[bytes, JSON]]:
    """Return each archive by its name, with its expected reason or members."""
    members = [(path.encode(), content) for path, content in MEMBERS.items()]
    shown: JSON = {path: content.decode() for path, content in MEMBERS.items()}
    plain = MAGIC + b"".join(write_member(*member) for member in members)
    run_at = plain.index(b"0a" * 40)
    text = plain[:run_at] + plain[run_at + 80 :]
    good = compress(pack(text, (run_at, 40), runs=bytes([10] * 40)))
    many = [(b"metadata/%05d.json" % number, b"") for number in range(MAX_MEMBERS + 1)]
    large = b"".join(number.to_bytes(4, "big") for number in range(1 << 15))
    return {
        "good": (good, shown),
        "good-without-runs": (compress(pack(plain)), shown),
        "good-row-without-a-run": (compress(pack(plain, (9, 0))), shown),
        "good-bytes-after-the-frame": (good + b"after", shown),
        "good-without-members": (write_archive(), {}),
        "empty": (b"", "archive-truncated"),
        "not-a-frame": (b"<html>sign in to the network</html>", "archive-malformed"),
        "frame-cut": (good[:-9], "archive-truncated"),
        "frame-without-its-size": (compress(pack(plain), has_size=False), "archive-malformed"),
        "window-too-large": (widen_window(large), "archive-malformed"),
        "bomb": (compress(bytes(1 << 24)), "archive-too-large"),
        "runs-unpack-too-large": (compress(pack(MAGIC, (8, 40_000), runs=bytes(40_000))), "archive-too-large"),
        "rows-missing": (compress(struct.pack(">I", 3)), "archive-truncated"),
        "number-of-rows-cut": (compress(b"\0\0"), "archive-truncated"),
        "rows-longer-than-their-text": (compress(pack(text, (60_000, 40))), "archive-malformed"),
        "magic-of-another": (write_archive(magic=b"AWARCH02"), "archive-malformed"),
        "length-cut": (compress(pack(plain + b"\0")), "archive-truncated"),
        "member-cut": (compress(pack(plain[:-1])), "archive-truncated"),
        "members-unsorted": (write_archive(*reversed(members)), "archive-malformed"),
        "member-twice": (write_archive(members[0], members[0]), "archive-malformed"),
        "path-absolute": (write_archive((b"/etc/passwd", b"")), "archive-malformed"),
        "path-parent": (write_archive((b"metadata/../../x.json", b"")), "archive-malformed"),
        "path-empty": (write_archive((b"", b"")), "archive-malformed"),
        "path-not-ascii": (
            write_archive(("metadata/b\N{LATIN SMALL LIGATURE OE}uf.json".encode(), b"")),
            "archive-malformed",
        ),
        "members-too-many": (write_archive(*many), "archive-too-large"),
    }


def widen_window(content: bytes) -> bytes:
    """Return a frame that states a small content, but needs a window of twice the allowed size."""
    frame = bytearray(compress(content[:1024]))
    # magic ‖ descriptor: 4-byte content size, no single segment ‖ window ‖ size ‖ blocks of the frame
    header_bytes = zstandard.frame_header_size(bytes(frame))
    return (
        bytes(frame[:4])
        + bytes([0x80, (WINDOW_LOG + 1 - 10) << 3])
        + struct.pack("<I", 1024)
        + bytes(frame[header_bytes:])
    )


def main() -> None:
    """Write all files of the folder."""
    folder = FOLDER / "archive"
    vectors = make_vectors()
    for path in folder.glob("*.awz"):
        path.unlink()
    for name, (data, _) in vectors.items():
        (folder / f"{name}.awz").write_bytes(data)
    expected = {name: outcome for name, (_, outcome) in sorted(vectors.items())}
    (folder / "expected").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
