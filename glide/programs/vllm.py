"""vLLM (https://docs.vllm.ai). Written for the versions 0.19 to 0.33."""

from glide.programs.base import AdapterArguments, Command, Program, SleepMode

VLLM = Program(
    name="vllm",
    # The script `vllm` contains the path of its Python, which is wrong after an environment was moved to a node.
    commands=(
        Command(("{python}", "-m", "vllm.entrypoints.cli.main", "serve", "{path}"), module="vllm"),
        Command(("vllm", "serve", "{path}")),
    ),
    arguments=(
        ("--served-model-name", "{model}"),
        ("--max-num-seqs", "{sequences}"),  # vLLM's default differs between devices, and its API does not report it
        ("--uvicorn-log-level", "warning"),  # otherwise one line for each request
        ("--generation-config", "vllm"),  # otherwise, options that a request does not set come from the model's files
    ),
    port_arguments=("--host", "{address}", "--port", "{port}"),
    socket_arguments=("--uds", "{address}"),
    variables={
        "VLLM_API_KEY": "{key}",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CACHE_ROOT": "{cache}/vllm",
        # vLLM's CPU build takes almost all memory of the machine if this variable is missing. The value is in GiB.
        "VLLM_CPU_KVCACHE_SPACE": "{kv_gib}",
        # By default, the CPU build uses one core less than it could.
        "VLLM_CPU_OMP_THREADS_BIND": "{cores}",
    },
    listed_flags=(
        "--max-model-len", "--max-num-seqs", "--max-num-batched-tokens", "--max-logprobs", "--gpu-memory-utilization",
        "--dtype", "--quantization", "-q", "--kv-cache-dtype", "--block-size", "--swap-space", "--cpu-offload-gb",
        "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp",
        "--enable-expert-parallel", "--enforce-eager", "--no-enforce-eager", "--enable-prefix-caching",
        "--no-enable-prefix-caching", "--enable-chunked-prefill", "--no-enable-chunked-prefill", "--async-scheduling",
        "--reasoning-parser", "--enable-sleep-mode", "--max-loras", "--max-lora-rank", "--max-cpu-loras",
        "--seed", "--runner", "--convert",
    ),
    switches=(
        "--enable-expert-parallel", "--enforce-eager", "--no-enforce-eager", "--enable-prefix-caching",
        "--no-enable-prefix-caching", "--enable-chunked-prefill", "--no-enable-chunked-prefill", "--async-scheduling",
        "--enable-sleep-mode",
    ),
    own_flags=(
        "--host", "--port", "--uds", "--api-key", "--served-model-name", "--model", "--enable-lora",
        "--lora-modules",
    ),
    gpu_flags=(
        "--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp",
    ),
    prompts=64,
    token_ids="return_token_ids",
    limit=256,
    large_limit=1024,
    limit_flags=("--max-num-seqs",),
    progress_metrics=("vllm:generation_tokens_total", "vllm:prompt_tokens_total"),
    waiting_metric="vllm:num_requests_waiting",
    hits_metric="vllm:prefix_cache_hits_total",
    queries_metrics=("vllm:prefix_cache_queries_total",),
    adapters=AdapterArguments(
        # --max-loras: number of adapters in one batch. vLLM loads an adapter when a request first needs it.
        arguments=(("--enable-lora",), ("--max-lora-rank", "{rank}"), ("--max-loras", "{adapters}")),
        flag="--lora-modules",
        each="lora:{name}={path}",  # the names of adapters and of the model must differ
        fields=lambda name, number: {"model": f"lora:{name}"},
        embeds=True,
    ),
    # Level 1 moves the weights to main memory. The requests are part of vLLM's development mode. They need no API key,
    # but only this account can reach the socket.
    sleep_mode=SleepMode("--enable-sleep-mode", "/sleep?level=1", "/wake_up", {"VLLM_SERVER_DEV_MODE": "1"}),
    loading=r"(?i)starting to load model|loading (model|weights)|loading safetensors",
    warming=r"(?i)torch\.compile|compiling|capturing|graph capturing|profil|warm(ing)? ?up|init engine",
)  # fmt: skip
