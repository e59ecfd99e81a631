"""The requests and results that travel between access points and nodes. Needs only the standard library."""
