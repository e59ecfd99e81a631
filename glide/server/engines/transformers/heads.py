"""The tasks `embed` and `classify`: one forward pass, and a vector or scores from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glide.server.engines import Completion
from glide.server.engines.transformers.prompts import Encoder, Prompt, check, cut


class Head:
    """Rows are padded on the right, where neither a causal model nor a position sees it, and masked."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        self.model = model
        self.encoder = encoder
        self.batch = batch
        self.batch_tokens = batch_tokens
        # An encoder's positions may begin at 2, so its table is longer than the prompts it takes.
        positions = getattr(model.config, "max_position_embeddings", None) or 1 << 30
        self.context = min(positions, encoder.tokenizer.model_max_length)

    def plan(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        return cut(prompts, self.batch, self.batch_tokens)

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        import torch

        check(prompts, 0, self.context)
        rows = [prompt.ids for prompt in prompts]
        width, padding = max(map(len, rows)), self._padding(rows)
        ids = [row + [padding] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        device = self.model.device
        with torch.inference_mode():
            marked = torch.tensor(mask, device=device)
            output = self.model(input_ids=torch.tensor(ids, device=device), attention_mask=marked)
            return self._completions(output, marked)

    def describe(self) -> dict[str, Any]:
        return {"batching": "static"}

    def _padding(self, rows: list[list[int]]) -> int:
        return self.encoder.padding

    def _completions(self, output: Any, mask: Any) -> list[Completion]:
        raise NotImplementedError


class Embedding(Head):
    """The mean of a prompt's last hidden states, of length 1."""

    def _completions(self, output: Any, mask: Any) -> list[Completion]:
        weights = mask.unsqueeze(-1).float()
        mean = (output.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
        unit = mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        # Seven digits are what float32 has; more would only make the results longer.
        return [Completion("", 0, {"embedding": [round(x, 7) for x in row]}) for row in unit.tolist()]


class Classification(Head):
    """The label with the highest score, and the scores of all."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        super().__init__(model, encoder, batch, batch_tokens)
        self.config = model.config.get_text_config()
        self.unpadded = self.config.pad_token_id is None
        self.labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        # One label, or several that may all be true, have a probability each; else they share one.
        self.independent = len(self.labels) == 1 or model.config.problem_type == "multi_label_classification"

    def _padding(self, rows: list[list[int]]) -> int:
        """A decoder scores the last token that is not padding: where that is ours to choose, no prompt ends in it."""
        if self.unpadded:
            ends = {row[-1] for row in rows}
            self.config.pad_token_id = next(token for token in range(len(ends) + 1) if token not in ends)
        return int(self.config.pad_token_id)

    def _completions(self, output: Any, mask: Any) -> list[Completion]:
        logits = output.logits.float()
        scores = logits.sigmoid() if self.independent else logits.softmax(-1)
        completions = []
        for row in scores.tolist():
            by_label = dict(zip(self.labels, (round(score, 7) for score in row), strict=True))
            completions.append(Completion(max(by_label, key=lambda label: by_label[label]), 0, {"scores": by_label}))
        return completions
