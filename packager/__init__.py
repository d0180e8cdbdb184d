"""Makes releases: quantize, compare, assemble, diff, encrypt, sign, publish."""
