"""From a release file to published files."""
