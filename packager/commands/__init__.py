"""Commands of `packager`, one module a noun group."""
