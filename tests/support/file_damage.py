"""Damage files: missing, empty, truncated, or with one flipped bit."""

from pathlib import Path

DAMAGES = ("kept", "missing", "empty", "truncated", "flipped")


def damage_file(path: Path, damage: str) -> None:
    """Apply one kind of damage to one file."""
    data = path.read_bytes()
    match damage:
        case "kept":
            return
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(data[: len(data) // 2])
        case "flipped":
            place = len(data) // 2
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
