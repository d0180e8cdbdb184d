"""Envelope shards: envelopes of many recipients in one file, in records of one size, sorted by name.

A device reads the index and then its own record, each with one range request. Nothing signs a shard: an envelope opens
for its recipient only, and what it contains is compared with signed metadata. So a wrong shard costs requests, and
decides nothing.

Rules (docs/format.md section 7.1; big-endian, sizes in bytes):
- A shard is magic "AWSHARD1" (8) ‖ number of records n (4) ‖ size of an envelope (4) ‖ index ‖ records, at most
  MAX_SHARD_BYTES.
- The index is the first 8 bytes of each record's name, strictly ascending. A record is its name (32) ‖ the envelope.
- A cohort's epoch has a power of two of shards, which the fleet document states. A name is in shard
  ⌊first 8 bytes of the name · shards / 2^64⌋.
- The envelopes of a release's content key are one shard.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from bundle.errors import NotFound, ShardMalformed, ShardMismatch, ShardTooLarge, ShardTruncated, ShardUnsorted
from bundle.key_sizes import MAX_ENVELOPE_BYTES
from bundle.repository_paths import SORT_KEY_BYTES, key_of

MAGIC: Final = b"AWSHARD1"
MAX_SHARD_BYTES: Final = 512 * 1024
NAME_BYTES: Final = 32
HEAD_BYTES: Final = 3328  # first range: header and index of the fullest shard of cohort envelopes, 409 records
_HEADER: Final = struct.Struct(">8sII")
_KEY: Final = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class ShardIndex:
    """The header and the index of a shard.

    Attributes:
        envelope_bytes: size of each envelope.
        keys: first 8 bytes of each name, as integers, ascending.
    """

    envelope_bytes: int
    keys: tuple[int, ...]

    @property
    def total_bytes(self) -> int:
        """Size of the shard."""
        return _shard_bytes(len(self.keys), self.envelope_bytes)

    @property
    def record_bytes(self) -> int:
        """Size of a record."""
        return NAME_BYTES + self.envelope_bytes

    def find_record(self, name: str) -> int:
        """Return the offset of a record in the shard.

        Args:
            name: name of the envelope, in hexadecimal.

        Raises:
            NotFound: the shard has no such record.
        """
        try:
            position = self.keys.index(key_of(name))
        except ValueError as error:
            raise NotFound(f"envelope shard: none of {len(self.keys)} records is {name[:16]}…") from error
        return _HEADER.size + SORT_KEY_BYTES * len(self.keys) + position * self.record_bytes

    def check_total(self, found_bytes: int) -> None:
        """Check the size of the shard's file.

        Args:
            found_bytes: size of the file.

        Raises:
            ShardTruncated: it is smaller than its header says.
            ShardMalformed: it is larger.
        """
        text = f"envelope shard: found {found_bytes} bytes, expected {self.total_bytes} for {len(self.keys)} records"
        if found_bytes < self.total_bytes:
            raise ShardTruncated(text)
        if found_bytes > self.total_bytes:
            raise ShardMalformed(text)


def max_records(envelope_bytes: int) -> int:
    """Return how many records a shard has at most."""
    return (MAX_SHARD_BYTES - _HEADER.size) // (SORT_KEY_BYTES + NAME_BYTES + envelope_bytes)


def encode_shard(envelopes: Mapping[str, bytes]) -> bytes:
    """Encode the envelopes of a shard.

    Args:
        envelopes: name in hexadecimal → envelope; not empty, and all envelopes have one size.

    Raises:
        ShardMalformed: there is no envelope, or their sizes differ.
        ShardTooLarge: there are more than a shard may have.
        ShardUnsorted: two names begin with the same 8 bytes.
    """
    sizes = {len(envelope) for envelope in envelopes.values()}
    if len(sizes) != 1:
        raise ShardMalformed(f"envelope shard: envelopes of {len(sizes)} sizes, expected one size")
    (size,) = sizes
    if _shard_bytes(len(envelopes), size) > MAX_SHARD_BYTES:
        raise ShardTooLarge(f"envelope shard: {len(envelopes)} records, at most {max_records(size)} are allowed")
    names = sorted(envelopes)
    keys = tuple(map(key_of, names))
    _check_ascending(keys)
    records = b"".join(bytes.fromhex(name) + envelopes[name] for name in names)
    return _HEADER.pack(MAGIC, len(names), size) + b"".join(map(_KEY.pack, keys)) + records


def parse_index(head: bytes) -> ShardIndex:
    """Parse the header and the index of a shard.

    Args:
        head: the first bytes of the shard.

    Raises:
        ShardMalformed: the bytes are not the start of a shard.
        ShardTooLarge: the shard is larger than allowed.
        ShardTruncated: they end within the index.
        ShardUnsorted: the index is not strictly ascending.
    """
    if len(head) < _HEADER.size:
        raise ShardTruncated(f"envelope shard: ends at byte {len(head)}, within its header")
    magic, count, envelope_bytes = _HEADER.unpack_from(head)
    if magic != MAGIC or not 0 < envelope_bytes <= MAX_ENVELOPE_BYTES or not count:
        raise ShardMalformed(
            f"envelope shard: found {magic!r}, {count} records of {envelope_bytes} bytes, expected {MAGIC!r}"
        )
    if _shard_bytes(count, envelope_bytes) > MAX_SHARD_BYTES:
        raise ShardTooLarge(
            f"envelope shard: {count} records of {envelope_bytes} bytes, at most {MAX_SHARD_BYTES} bytes are allowed"
        )
    end = _HEADER.size + SORT_KEY_BYTES * count
    if len(head) < end:
        raise ShardTruncated(f"envelope shard: ends at byte {len(head)}, its index ends at {end}")
    keys = tuple(row[0] for row in _KEY.iter_unpack(head[_HEADER.size : end]))
    _check_ascending(keys)
    return ShardIndex(envelope_bytes, keys)


def parse_record(record: bytes, name: str) -> bytes:
    """Return the envelope in a record.

    Args:
        record: the record.
        name: name that the record must have, in hexadecimal.

    Raises:
        ShardMismatch: it has another name.
    """
    found = record[:NAME_BYTES].hex()
    if found != name:
        raise ShardMismatch(f"envelope shard: the record of {name[:16]}… has the name {found[:16]}…")
    return record[NAME_BYTES:]


def find_envelope(shard: bytes, name: str) -> bytes:
    """Return an envelope of a whole shard.

    Args:
        shard: the shard.
        name: name of the envelope, in hexadecimal.

    Raises:
        NotFound: the shard has no such record.
        Refused: the shard breaks its format, as of `parse_index`, `ShardIndex.check_total` and `parse_record`.
    """
    index = parse_index(shard)
    index.check_total(len(shard))
    start = index.find_record(name)
    return parse_record(shard[start : start + index.record_bytes], name)


def decode_shard(shard: bytes) -> dict[str, bytes]:
    """Return all envelopes of a shard: name in hexadecimal → envelope.

    Raises:
        Refused: the shard breaks its format, as of `find_envelope`.
    """
    index = parse_index(shard)
    index.check_total(len(shard))
    out = {}
    position = _HEADER.size + SORT_KEY_BYTES * len(index.keys)
    for key in index.keys:
        record = shard[position : position + index.record_bytes]
        name = record[:NAME_BYTES].hex()
        if key_of(name) != key:
            raise ShardMismatch(f"envelope shard: the record of {key:016x}… has the name {name[:16]}…")
        out[name] = record[NAME_BYTES:]
        position += index.record_bytes
    return out


def _shard_bytes(count: int, envelope_bytes: int) -> int:
    return _HEADER.size + count * (SORT_KEY_BYTES + NAME_BYTES + envelope_bytes)


def _check_ascending(keys: tuple[int, ...]) -> None:
    for before, key in pairwise(keys):
        if before >= key:
            raise ShardUnsorted(f"envelope shard: name {key:016x}… after {before:016x}…, expected ascending ones")
