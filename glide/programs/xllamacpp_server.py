"""Run llama.cpp's server from the Python package xllamacpp, which contains the server but no command.

The flags in FLAGS have the same names and meanings as those of llama-server. This file knows no other flags. It is run
as a script, in an environment that need not contain glide.
"""

import argparse
import os
import signal
import sys
from typing import Any

import xllamacpp

# For each flag: its names, the field of xllamacpp's parameters, and the type of its value (bool: no value).
FLAGS: tuple[tuple[tuple[str, ...], str, Any], ...] = (
    (("--parallel", "-np"), "n_parallel", int),
    (("--ctx-size", "-c"), "n_ctx", int),
    (("--batch-size", "-b"), "n_batch", int),
    (("--ubatch-size", "-ub"), "n_ubatch", int),
    (("--n-gpu-layers", "--gpu-layers", "-ngl"), "n_gpu_layers", int),
    (("--main-gpu", "-mg"), "main_gpu", int),
    (("--threads", "-t"), "cpuparams.n_threads", int),
    (("--threads-batch", "-tb"), "cpuparams_batch.n_threads", int),
    (("--cache-ram",), "cache_ram_mib", int),
    (("--cache-type-k", "-ctk"), "cache_type_k", "ggml_type"),
    (("--cache-type-v", "-ctv"), "cache_type_v", "ggml_type"),
    (("--kv-unified", "-kvu"), "kv_unified", bool),
    (("--embedding", "--embeddings"), "embedding", bool),
    (("--jinja",), "use_jinja", bool),
    (("--rope-freq-base",), "rope_freq_base", float),
    (("--rope-freq-scale",), "rope_freq_scale", float),
    (("--metrics",), "endpoint_metrics", bool),
    (("--threads-http",), "n_threads_http", int),
    (("--log-verbosity", "--verbosity", "-lv"), "verbosity", int),
    (("--port",), "port", int),
)


def main() -> None:
    """Start the server, and serve until this process gets a signal."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", "-m", required=True)
    parser.add_argument("--alias", "-a", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--lora", default="", help="paths of LoRA adapters, with commas between them")
    parser.add_argument("--lora-init-without-apply", action="store_true")
    for names, field, kind in FLAGS:
        if kind is bool:
            parser.add_argument(*names, dest=field, action="store_true", default=None)
        else:
            parser.add_argument(*names, dest=field, type=str if kind == "ggml_type" else kind)
    given = vars(parser.parse_args())
    parameters = xllamacpp.CommonParams()
    parameters.model.path = given["model"]
    parameters.model_alias = {given["alias"]}
    parameters.hostnames = [given["host"]]
    scale = 0.0 if given["lora_init_without_apply"] else 1.0
    parameters.lora_adapters = [
        xllamacpp.CommonAdapterLoraInfo(path, scale) for path in given["lora"].split(",") if path
    ]
    parameters.lora_init_without_apply = given["lora_init_without_apply"]
    if key := os.environ.get("LLAMA_API_KEY"):
        parameters.api_keys = [key]
    for _, field, kind in FLAGS:
        value = given[field]
        if value is None:
            continue
        if kind == "ggml_type":
            value = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{value.upper()}")
        *before, last = field.split(".")
        setattr(getattr(parameters, before[0]) if before else parameters, last, value)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        server = xllamacpp.Server(parameters)
    except RuntimeError as error:  # the lines before it give the reason, so a traceback would only hide them
        sys.exit(str(error))
    print(f"listening on {server.listening_address}", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    os._exit(0)


if __name__ == "__main__":
    main()
