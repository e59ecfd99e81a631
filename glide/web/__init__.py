"""glide web: a read-only server that shows the pool's status in a browser, and exports metrics for Prometheus."""
