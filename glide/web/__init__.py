"""The factory for a browser and for Prometheus: a process of its own that only looks."""
