"""Choose predictor and coder for each job, and encode it to frames."""
