"""Making patches, and applying them to folders for people who want to see one work."""
