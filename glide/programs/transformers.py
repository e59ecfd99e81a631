"""`transformers serve`, the server of the package transformers[serving]. Written for version 5.23.

It serves one request after the other, unless --continuous-batching is given. It has no API key, so other accounts of
the node can send requests to it.
"""

from glide.programs.base import Command, Program

TRANSFORMERS = Program(
    name="transformers",
    commands=(
        Command(("{python}", "-m", "transformers.cli.transformers", "serve", "{path}"), module="transformers"),
    ),
    port_arguments=("--host", "{address}", "--port", "{port}"),
    listed_flags=(
        "--dtype", "--device", "--compile", "--quantization", "--continuous-batching", "--cb-block-size",
        "--cb-num-blocks", "--cb-max-batch-tokens", "--cb-max-memory-percent", "--cb-use-cuda-graph", "--reasoning",
        "--default-seed", "--log-level",
    ),
    switches=("--compile", "--continuous-batching"),
    own_flags=("--host", "--port"),
    model="{path}",
    lists_models=False,  # with an empty hub cache, /v1/models answers with status 500
    limit=4,
)  # fmt: skip
