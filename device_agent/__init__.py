"""Takes releases: verify, fetch, patch, probe, swap, watch, commit or roll back."""
