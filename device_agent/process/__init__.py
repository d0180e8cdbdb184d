"""Worker processes, their channel and their jail."""
