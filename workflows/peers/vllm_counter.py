"""A plugin of vLLM: it says when the engine is ready, and how many prompts the engine has begun."""

from infer import begin, loaded
from vllm.v1.metrics.loggers import StatLoggerBase


class Counter(StatLoggerBase):
    def __init__(self, vllm_config, engine_index=0):
        self.finished = 0
        self.begun = 0

    def log_engine_initialized(self):
        loaded()

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx=0):
        if iteration_stats:
            self.finished += len(iteration_stats.finished_requests)
        begun = self.finished + (scheduler_stats.num_running_reqs if scheduler_stats else 0)
        if begun > self.begun:
            begin(begun - self.begun)
            self.begun = begun
