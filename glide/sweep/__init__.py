"""The workflow driver: a sweep file becomes records, records become results and a summary."""
