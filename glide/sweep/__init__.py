"""Sweeps and sessions. They read records or calls, run these as invocation jobs, and store the results."""
