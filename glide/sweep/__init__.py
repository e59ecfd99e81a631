"""Run the records of sweeps and the Python calls of sessions in invocation jobs, and deliver the results."""
