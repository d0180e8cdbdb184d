"""Pure decisions and records, without I/O; read this package before `update`."""
