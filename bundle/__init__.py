"""The contract between packager and device: every byte that crosses the network or the disk."""
