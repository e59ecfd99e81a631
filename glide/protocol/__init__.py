"""What travels between access points and nodes: requests, results and ads. Needs only the standard library."""
