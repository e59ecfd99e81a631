"""The tasks `embed` and `classify`. They compute a vector or scores from one forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from glide.server.engines.base import Completion, EngineRecord, usage
from glide.server.engines.transformers import positions
from glide.server.engines.transformers.prompts import (
    Encoder,
    Prompt,
    check_prompts,
    divide_into_calls,
    truncated,
)
from glide.server.engines.transformers.sharing import LONGEST, RowSharing, tolerance, try_rows

WORDS = "the claim is that rivers flow north and nobody has seen any evidence for it since then"


class Head:
    """Base class of the tasks `embed` and `classify`.

    A call may have rows of different lengths if padding does not change the model's outputs. The shorter rows are then
    padded on the right, and the padding is masked.
    """

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        self.model = model
        self.encoder = encoder
        self.batch = batch
        self.batch_tokens = batch_tokens
        # Some encoders never use the positions 0 and 1. The model's maximum length may still include these two
        # positions. The tokenizer's maximum length leaves these two positions out. So use the smaller maximum length.
        self.context = min(positions.context_tokens(model), encoder.tokenizer.model_max_length)
        self.vocabulary_size = positions.vocabulary_size(model)
        self.sharing = RowSharing(dynamic_rope=positions.dynamic_rope(model))

    def warm_up(self) -> None:
        """Try out which prompts may share a call, and set `sharing` to the rule that works."""
        max_tokens = max(1, min(self.context, self.sharing.unrestricted_tokens))
        texts = [f"{n} {WORDS[n:]} {WORDS}" for n in range(3)]
        rows = [prompt.ids[:max_tokens] for prompt in self.encoder.encode([EngineRecord(-1, text) for text in texts])]
        rows = [row[:LONGEST] for row in rows]
        allowed, why = try_rows(lambda rows: self._outputs(rows)[:, None], rows, tolerance(self.model))
        self.sharing = self.sharing.limited_to(allowed)
        if why:
            print(f"transformers engine: calls have {allowed.description}: {why}", flush=True)

    def plan(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        def may_share(first: Prompt, prompt: Prompt) -> bool:
            return self.sharing.allows(len(first.ids), len(prompt.ids), 0)

        return divide_into_calls(prompts, self.batch, self.batch_tokens, may_share)

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        prompts = [
            truncated(prompt, self.context, prompt.record.generate.get("truncate"), self.encoder.tokenizer.bos_token_id)
            for prompt in prompts
        ]
        check_prompts(prompts, lambda length: length, self.context, self.vocabulary_size)
        completions = self._completions(self._outputs([prompt.ids for prompt in prompts]))
        return [
            replace(each, extra={**each.extra, "usage": usage(len(prompt.ids), 0)})
            for prompt, each in zip(prompts, completions, strict=True)
        ]

    def _outputs(self, rows: Sequence[list[int]]) -> Any:
        """Return the model's outputs for rows of tokens, as a tensor with the dimensions (row, output)."""
        import torch

        if self.sharing.dynamic_rope is not None:
            positions.reset_dynamic_rope(self.model)
        width, padding_token = max(map(len, rows)), self._padding_token(rows)
        ids = [row + [padding_token] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        device = self.model.device
        with torch.inference_mode():
            mask_tensor = torch.tensor(mask, device=device)
            output = self.model(input_ids=torch.tensor(ids, device=device), attention_mask=mask_tensor)
            return self._row_outputs(output, mask_tensor)

    def describe(self) -> dict[str, Any]:
        return {"batching": self.sharing.rows.batching}

    def _padding_token(self, rows: Sequence[list[int]]) -> int:
        return self.encoder.padding_token(self.vocabulary_size)

    def _row_outputs(self, output: Any, mask: Any) -> Any:
        raise NotImplementedError

    def _completions(self, outputs: Any) -> list[Completion]:
        raise NotImplementedError


class Embedding(Head):
    """The task `embed`. It returns the mean of a prompt's last hidden states, scaled to length 1."""

    def _row_outputs(self, output: Any, mask: Any) -> Any:
        weights = mask.unsqueeze(-1).float()
        mean = (output.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
        return mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _completions(self, outputs: Any) -> list[Completion]:
        # A float32 has about seven significant digits. More digits would only make the results longer.
        return [Completion("", 0, {"embedding": [round(x, 7) for x in row]}) for row in outputs.tolist()]


class Classification(Head):
    """The task `classify`. It returns the label with the highest score, and the scores of all labels."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        super().__init__(model, encoder, batch, batch_tokens)
        self.config = model.config.get_text_config()
        self.unpadded = self.config.pad_token_id is None
        self.labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        # In two cases, the probability of each label is computed separately:
        # - The model has only one label.
        # - Several labels may be true at the same time.
        # In all other cases, the probabilities of all labels add up to 1.
        self.independent = len(self.labels) == 1 or model.config.problem_type == "multi_label_classification"

    def _padding_token(self, rows: Sequence[list[int]]) -> int:
        """Return the padding token. If the model has no padding token, choose a token.

        A decoder computes the scores of a row at the row's last token. To find this token, the decoder skips all
        padding tokens at the row's end. So the chosen token must not be the last token of any row.
        """
        if self.unpadded:
            last_tokens = {row[-1] for row in rows}
            self.config.pad_token_id = next(token for token in range(len(last_tokens) + 1) if token not in last_tokens)
        return int(self.config.pad_token_id)

    def _row_outputs(self, output: Any, mask: Any) -> Any:
        return output.logits.float()

    def _completions(self, outputs: Any) -> list[Completion]:
        scores = outputs.sigmoid() if self.independent else outputs.softmax(-1)
        completions = []
        for row in scores.tolist():
            by_label = dict(zip(self.labels, (round(score, 7) for score in row), strict=True))
            completions.append(Completion(max(by_label, key=lambda label: by_label[label]), 0, {"scores": by_label}))
        return completions
