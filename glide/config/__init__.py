"""Pydantic models of the YAML files that users and admins write.

An unknown key is an error. Each error message names the file, the line and a fix.
"""

from glide.config.model import PHASES, ModelSpec
from glide.config.reading import load, position, read_text
from glide.config.site import Breaker, Entry, Login, Pool, SiteFile
from glide.config.sweep import REPORT, SUMMARY, ModelFile, SweepFile, prompt_fields

__all__ = [
    "PHASES", "REPORT", "SUMMARY", "Breaker", "Entry", "Login", "ModelFile", "ModelSpec", "Pool", "SiteFile",
    "SweepFile", "load", "position", "prompt_fields", "read_text",
]  # fmt: skip
