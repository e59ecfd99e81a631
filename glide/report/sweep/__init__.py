"""A sweep for people: its progress, its table, and the report of where the time went and what came out."""
