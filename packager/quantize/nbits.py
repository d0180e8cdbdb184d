"""4-bit levels as MatMulNBits holds them: two to a byte, low half first, [channels, blocks, block / 2]."""

import numpy as np


def unpack_levels(packed: np.ndarray, inputs: int) -> np.ndarray:
    """int32 [channels, inputs] in 0..15 from uint8 [channels, blocks, block / 2]; padding behind `inputs` is cut."""
    rows = packed.reshape(packed.shape[0], -1)
    levels = np.stack([rows & 15, rows >> 4], axis=-1).reshape(packed.shape[0], -1)
    return levels[:, :inputs].astype(np.int32)


def pack_levels(levels: np.ndarray, block: int, padding: int = 8) -> np.ndarray:
    """uint8 [channels, blocks, block / 2] from levels [channels, inputs] in 0..15; short last blocks are padded."""
    channels, inputs = levels.shape
    blocks = -(-inputs // block)
    full = np.full((channels, blocks * block), padding, np.uint8)
    full[:, :inputs] = levels
    pairs = full.reshape(channels, blocks, block // 2, 2)
    return np.asarray(pairs[..., 0] | (pairs[..., 1] << 4), np.uint8)
