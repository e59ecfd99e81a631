"""A sweep for people: its progress, its final table, and the report with figures."""
