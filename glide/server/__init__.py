"""The resident model server of a glidein: its front, its engines, and what it tells the pool. Standard library only."""
