"""Pack records into invocation jobs, submit the jobs, and gather their results."""
