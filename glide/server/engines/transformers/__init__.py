"""The transformers engine. Its language models generate, embed or classify text, on GPUs with CUDA or on CPUs."""

from glide.server.engines.transformers.engine import Transformers

__all__ = ["Transformers"]
