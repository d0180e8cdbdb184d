"""A model of the Llama architecture that llama.cpp runs, with random weights, written by the package `gguf`."""

from pathlib import Path

import gguf
import numpy as np

LAYERS, WIDTH, HIDDEN, HEADS = 2, 64, 128, 4
LETTERS = ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]  # the first one is SentencePiece's space
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS]
TOKEN_TYPES = [2, 3, 3, *[6] * 256, *[1] * len(LETTERS)]  # unknown, control, byte, normal


def write_llama(path: Path, tuning: float) -> None:
    """Write the model.

    Args:
        path: the file.
        tuning: size of a change of the weights of all layers, as of a fine-tune; 0 for the first model.
    """
    base, change = np.random.default_rng(1), np.random.default_rng(2)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * len(TOKENS))
    writer.add_token_types(TOKEN_TYPES)
    for name, shape in _tensors():
        if len(shape) == 1:
            writer.add_tensor(name, np.ones(shape, np.float32))
            continue
        values = base.normal(0, 0.1, shape) + change.normal(0, tuning, shape)
        writer.add_tensor(name, values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors() -> list[tuple[str, tuple[int, ...]]]:
    out: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (len(TOKENS), WIDTH)),
        ("output_norm.weight", (WIDTH,)),
    ]
    for layer in range(LAYERS):
        shapes: dict[str, tuple[int, ...]] = {f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
        shapes |= {"ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH), "ffn_down": (WIDTH, HIDDEN)}
        shapes |= {"attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}
        out += [(f"blk.{layer}.{name}.weight", shape) for name, shape in shapes.items()]
    return out
