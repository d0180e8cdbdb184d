"""The supervisor: one main thread, all families, the control socket."""
