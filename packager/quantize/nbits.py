"""Pack and unpack 4-bit levels in the layout of MatMulNBits.
That is two levels to a byte, low half first, uint8 [channels, blocks, block / 2].
"""

import numpy as np


def unpack_levels(packed: np.ndarray, inputs: int) -> np.ndarray:
    """Return the levels, int32 [channels, inputs] in 0..15, without the padding of the last block.

    Args:
        packed: uint8 [channels, blocks, block / 2], or [channels, bytes].
        inputs: levels of a channel.
    """
    rows = packed.reshape(packed.shape[0], -1)
    levels = np.stack([rows & 15, rows >> 4], axis=-1).reshape(packed.shape[0], -1)
    return levels[:, :inputs].astype(np.int32)


def pack_levels(levels: np.ndarray, block: int, padding: int = 8) -> np.ndarray:
    """Return packed levels, uint8 [channels, blocks, block / 2].

    Args:
        levels: uint8 [channels, inputs] in 0..15.
        block: inputs per block, an even number.
        padding: level that fills a short last block.
    """
    channels, inputs = levels.shape
    blocks = -(-inputs // block)
    full = np.full((channels, blocks * block), padding, np.uint8)
    full[:, :inputs] = levels
    pairs = full.reshape(channels, blocks, block // 2, 2)
    return np.asarray(pairs[..., 0] | (pairs[..., 1] << 4), np.uint8)
