"""Measure one row of `benchmarks.quantization_table` in its own process: MODEL SCHEME OUT."""

import json
import sys
from pathlib import Path

from benchmarks.quantization_table import peak_bytes, quantize_one

if __name__ == "__main__":
    model, scheme, out = sys.argv[1:]
    found = quantize_one(Path(model), scheme) | {"peak_bytes": peak_bytes()}
    Path(out).write_text(json.dumps(found, allow_nan=False))
