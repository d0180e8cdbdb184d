"""Model sessions, tensors and request frames; also the library behind `airweights`."""
