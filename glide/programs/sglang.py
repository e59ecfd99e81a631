"""SGLang (https://docs.sglang.ai). Written from its documentation, for version 0.5."""

from glide.programs.base import AdapterArguments, Command, Program

SGLANG = Program(
    name="sglang",
    commands=(Command(("{python}", "-m", "sglang.launch_server", "--model-path", "{path}"), module="sglang"),),
    arguments=(
        ("--served-model-name", "{model}"),
        ("--config", "{config}"),
        ("--log-level-http", "warning"),  # otherwise one line for each request
        ("--sampling-defaults", "openai"),  # otherwise, options that a request does not set come from the model's files
        ("--enable-metrics",),
    ),
    port_arguments=("--host", "{address}", "--port", "{port}"),
    config="api-key: {key}\n",  # SGLang reads its key from no variable, and everybody can read a process's arguments
    variables={"SGLANG_CACHE_DIR": "{cache}/sglang"},
    listed_flags=(
        "--context-length", "--mem-fraction-static", "--max-running-requests", "--max-total-tokens",
        "--chunked-prefill-size", "--max-prefill-tokens", "--schedule-policy", "--schedule-conservativeness",
        "--tp-size", "--tp", "--tensor-parallel-size", "--dp-size", "--dp", "--data-parallel-size", "--pp-size",
        "--ep-size", "--dtype", "--quantization", "--kv-cache-dtype", "--page-size", "--random-seed",
        "--reasoning-parser", "--grammar-backend", "--attention-backend", "--sampling-backend", "--disable-cuda-graph",
        "--cuda-graph-max-bs", "--disable-radix-cache", "--enable-torch-compile", "--torch-compile-max-bs",
        "--is-embedding", "--max-loras-per-batch", "--max-lora-rank", "--lora-backend",
    ),
    switches=("--disable-cuda-graph", "--disable-radix-cache", "--enable-torch-compile", "--is-embedding"),
    own_flags=(
        "--host", "--port", "--api-key", "--admin-api-key", "--served-model-name", "--model-path", "--model",
        "--config", "--enable-lora", "--lora-paths",
    ),
    gpu_flags=(
        "--tp-size", "--tp", "--tensor-parallel-size", "--dp-size", "--dp", "--data-parallel-size", "--pp-size",
    ),
    prompts=64,
    limit=128,
    limit_flags=("--max-running-requests",),
    limit_path="/server_info",
    limit_keys=("internal_states", 0, "effective_max_running_requests_per_dp"),
    progress_metrics=("sglang:generation_tokens_total", "sglang:num_used_tokens"),
    waiting_metric="sglang:num_queue_reqs",
    hits_metric="sglang:cached_tokens_total",
    queries_metrics=("sglang:prompt_tokens_total",),
    adapters=AdapterArguments(
        arguments=(("--enable-lora",), ("--max-lora-rank", "{rank}"), ("--max-loras-per-batch", "{adapters}")),
        flag="--lora-paths",
        each="{name}={path}",
        fields=lambda name, number: {"lora_path": name},
    ),
    loading=r"(?i)load weight begin",
    warming=r"(?i)capture cuda graph begin|warm(ing)? ?up",
)  # fmt: skip
