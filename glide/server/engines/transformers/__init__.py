"""The transformers engine: language models that generate, embed or classify, on CUDA where there is some."""

from glide.server.engines.transformers.engine import Transformers

__all__ = ["Transformers"]
