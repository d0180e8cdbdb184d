"""What a model file is, and how to run it."""
