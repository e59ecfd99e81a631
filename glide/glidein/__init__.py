"""What runs on a node before and around the model server, and turns an outer job into lanes of the pool."""
