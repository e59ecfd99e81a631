"""Reports for people: the pool's status, a sweep's progress and results, and the output of experiments."""
