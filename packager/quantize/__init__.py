"""Makes smaller models out of float ones, and says how far their answers are from the float model's."""
