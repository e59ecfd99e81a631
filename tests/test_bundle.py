"""glide.glidein.bundle: the code that is sent to nodes."""

from __future__ import annotations

from glide.glidein.bundle import bundle


def test_code_for_nodes_is_packed_once():
    """A factory submits glideins for years, and the buffers of each packing made its memory larger."""
    assert bundle() is bundle()
