"""Plan the jobs, write their frames, and keep the smallest patch."""
