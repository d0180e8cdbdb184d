"""Find the base array for each target array: by name, by content, by nearest sample."""
