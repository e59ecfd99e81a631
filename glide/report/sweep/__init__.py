"""Texts and figures about a sweep: its progress, the table of its results, and its report."""
