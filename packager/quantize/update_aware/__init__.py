"""Quantizes a new float model given the quantized model that devices hold, so that the difference is nearly nothing."""
