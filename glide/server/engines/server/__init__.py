"""The engine `server`. It starts a program that serves the model behind OpenAI's API, and keeps it running."""

from glide.server.engines.server.engine import Server

__all__ = ["Server"]
