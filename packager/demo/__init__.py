"""`packager demo`: the product's story on a real model, on loopback, in about a minute."""
