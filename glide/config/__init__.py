"""The files users write, as pydantic models: extra keys are refused, and an error names file, line and fix."""

from glide.config.reading import load, place, read_text
from glide.config.site import Breaker, Entry, Login, Pool, SiteFile
from glide.config.sweep import PHASES, SUMMARY, ModelSpec, SweepFile, prompt_fields

__all__ = [
    "PHASES", "SUMMARY", "Breaker", "Entry", "Login", "ModelSpec", "Pool", "SiteFile", "SweepFile",
    "load", "place", "prompt_fields", "read_text",
]  # fmt: skip
