"""datatrove's InferenceRunner: two tasks on Ray. Each starts a vLLM server, which computes half of the prompts.

Usage: python datatrove_runner.py MODEL RECORDS OUT VLLM
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

began = time.time()
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
locks = tempfile.TemporaryDirectory()
os.environ["VLLM_COMPILE_LOCK_DIR"] = locks.name

import ray  # noqa: E402
from datatrove.data import Document  # noqa: E402
from datatrove.executor.ray import RayPipelineExecutor  # noqa: E402
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner  # noqa: E402
from datatrove.pipeline.inference.servers.compile_lock import CompileLockManager, compute_config_hash  # noqa: E402
from datatrove.pipeline.writers import JsonlWriter  # noqa: E402
from infer import WORKERS, announce, prompts_of, write_measurement  # noqa: E402
from vllm_workers import MAX_MODEL_LEN, OPTIONS, SAMPLING, counted  # noqa: E402

folder, records, out, vllm = sys.argv[1:]
prompts = prompts_of(records)
# The servers compile nothing here, so the second one need not wait until the first one has compiled.
CompileLockManager(compute_config_hash(folder, 1, 1, 1, MAX_MODEL_LEN, OPTIONS)).mark_complete()


def read(data, rank, world_size):
    announce(os.getppid())  # Ray's worker; this process and the vLLM server are its descendants
    for number in range(rank, len(prompts), world_size):
        yield Document(prompts[number], str(number))


async def rollout(document, generate):
    return (await generate({"prompt": document.text})).text


with counted(vllm) as ready, tempfile.TemporaryDirectory() as name:
    config = InferenceConfig(
        server_type="vllm", model_name_or_path=folder, model_max_context=MAX_MODEL_LEN, use_chat=False,
        default_generation_params=SAMPLING, model_kwargs=OPTIONS, server_ready_delay_sec=1,
    )  # fmt: skip
    writer = JsonlWriter(f"{name}/out", output_filename="${rank}_${chunk_index}.jsonl", compression=None)
    runner = InferenceRunner(rollout, config, writer, checkpoints_local_dir=f"{name}/checkpoints")
    variables = {key: os.environ[key] for key in ("PYTHONPATH", "PATH")}
    ray.init(
        num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000,
        runtime_env={"env_vars": variables},
    )  # fmt: skip
    while True:
        executor = RayPipelineExecutor([read, runner], tasks=WORKERS, logging_dir=f"{name}/logs", mem_per_cpu_gb=0.1)
        executor.run()
        if not executor.get_incomplete_ranks():  # Ray starts a task again at most three times
            break
    lines = (line for path in Path(name, "out").glob("*.jsonl") for line in path.read_text("utf-8").splitlines())
    texts = {int(answer["id"]): answer["metadata"]["rollout_results"][0] for answer in map(json.loads, lines)}
    write_measurement(out, began, ready(), [texts[number] for number in sorted(texts)])
    ray.shutdown()
