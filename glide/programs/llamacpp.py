"""llama.cpp's server: the program llama-server, or the Python package xllamacpp. Written for the builds of 2026."""

from glide.programs.base import AdapterArguments, Command, Program

LLAMACPP = Program(
    name="llamacpp",
    commands=(
        Command(("llama-server", "--model", "{file}")),
        # The package xllamacpp contains the same server, but no command. xllamacpp_server.py is a command for it.
        Command(("{python}", "{here}/xllamacpp_server.py", "--model", "{file}"), module="xllamacpp"),
    ),
    arguments=(
        ("--alias", "{model}"),
        ("--parallel", "{sequences}"),
        # All requests together. Each one gets the same part. If they shared it (--kv-unified), and it became full, all
        # running requests would fail.
        ("--ctx-size", "{context}"),
        ("--threads", "{cpus}"),
        ("--cache-ram", "0"),  # by default, old prompts take up to 8 GiB of main memory
        ("--threads-http", "{connections}"),  # each open connection occupies a thread; with too few, others wait
        ("--metrics",),
        ("--log-verbosity", "2"),  # warnings; otherwise several lines for each request
    ),
    port_arguments=("--host", "{address}", "--port", "{port}"),
    socket_arguments=("--host", "{address}"),  # an address that ends with .sock is a Unix socket
    variables={"LLAMA_API_KEY": "{key}"},
    listed_flags=(
        "--ctx-size", "-c", "--parallel", "-np", "--batch-size", "-b", "--ubatch-size", "-ub", "--threads", "-t",
        "--threads-batch", "-tb", "--n-gpu-layers", "-ngl", "--gpu-layers", "--split-mode", "-sm", "--tensor-split",
        "-ts", "--main-gpu", "-mg", "--flash-attn", "-fa", "--cache-type-k", "-ctk", "--cache-type-v", "-ctv",
        "--kv-unified", "-kvu", "--no-kv-unified", "--no-mmap", "--mlock", "--embedding", "--embeddings", "--pooling",
        "--jinja", "--no-jinja", "--reasoning-format", "--reasoning-budget", "--rope-scaling", "--rope-scale",
        "--rope-freq-base", "--rope-freq-scale", "--cpu-moe", "--n-cpu-moe", "--no-warmup",
    ),
    switches=(
        "--kv-unified", "-kvu", "--no-kv-unified", "--no-mmap", "--mlock", "--embedding", "--embeddings", "--jinja",
        "--no-jinja", "--cpu-moe", "--no-warmup",
    ),
    splits_values=True,
    own_flags=(
        "--host", "--port", "--api-key", "--api-key-file", "--alias", "-a", "--model", "-m", "--lora", "--lora-scaled",
        "--lora-init-without-apply",
    ),
    prompts=16,
    limit=8,
    limit_flags=("--parallel", "-np"),
    limit_path="/props",
    limit_keys=("total_slots",),
    progress_metrics=("llamacpp:n_decode_total",),  # the counters of tokens change only when a request ends
    waiting_metric="llamacpp:requests_deferred",
    hits_metric="llamacpp:prompt_tokens_cached_total",
    adapters=AdapterArguments(
        arguments=(("--lora-init-without-apply",),),  # a request without an adapter is computed by the model itself
        flag="--lora",
        each="{path}",
        fields=lambda name, number: {"lora": [{"id": number, "scale": 1.0}]},
        separator=",",
        # llama.cpp would use the cached beginning of a prompt again, although another adapter has computed it.
        always={"cache_prompt": False},
    ),
    queries_metrics=("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
)  # fmt: skip
