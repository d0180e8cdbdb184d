"""A repository: static files that devices trust, and the working folder that they are signed and published from."""
