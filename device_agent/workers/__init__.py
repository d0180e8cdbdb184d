"""Worker processes, and the supervisor's client of them."""
