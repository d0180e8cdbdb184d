"""Content codings of request and response bodies: gzip and deflate."""

import zlib
from collections.abc import Callable, Sequence
from typing import Final

from device_agent.errors import RequestInvalid

# zlib's codes for a gzip header, and for its own: HTTP's "deflate" is the zlib format (RFC 9110, 8.4.1.2)
ZLIB_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
PIECE_BYTES: Final = 1024 * 1024  # 10 ms
COMPRESSION_LEVEL: Final = 1  # links are local, so time matters more than size


def decompress(body: memoryview, encoding: str, max_bytes: int) -> memoryview:
    """Decompress a request body.

    Args:
        body: the compressed body.
        encoding: a Content-Encoding in ZLIB_WINDOW_BITS.
        max_bytes: largest size after decompression.

    Raises:
        RequestInvalid: the body is not in this encoding, is incomplete, or is larger than `max_bytes`.
    """
    engine = zlib.decompressobj(ZLIB_WINDOW_BITS[encoding])
    try:
        plain = engine.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise RequestInvalid(f"body is not {encoding}: {error}") from error
    if len(plain) > max_bytes or engine.unconsumed_tail:
        raise RequestInvalid(f"body is more than {max_bytes} bytes once decompressed")
    if not engine.eof or engine.unused_data:
        raise RequestInvalid("body is incomplete, or bytes follow its compressed stream")
    return memoryview(plain)


def compress(parts: Sequence[bytes | memoryview], encoding: str, on_pause: Callable[[], None] = lambda: None) -> bytes:
    """Compress a response body.

    Args:
        parts: parts of the body.
        encoding: a Content-Encoding in ZLIB_WINDOW_BITS.
        on_pause: called after each PIECE_BYTES.
    """
    engine = zlib.compressobj(COMPRESSION_LEVEL, zlib.DEFLATED, ZLIB_WINDOW_BITS[encoding])
    packed = []
    for part in parts:
        for start in range(0, len(part), PIECE_BYTES):
            packed.append(engine.compress(memoryview(part)[start : start + PIECE_BYTES]))
            if start:
                on_pause()
    return b"".join([*packed, engine.flush()])
