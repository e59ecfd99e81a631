"""The tasks `embed` and `classify`: one forward pass, and a vector or scores from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glide.server.engines import Completion, Record
from glide.server.engines.transformers import positions
from glide.server.engines.transformers.prompts import Encoder, Prompt, check, cut
from glide.server.engines.transformers.sharing import LONGEST, Sharing, tolerance, try_rows

WORDS = "the claim is that rivers flow north and nobody has seen any evidence for it since then"


class Head:
    """Rows are padded on the right and masked, where the loaded model then says of each what it says of it alone."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        self.model = model
        self.encoder = encoder
        self.batch = batch
        self.batch_tokens = batch_tokens
        # An encoder's positions may begin at 2, so its table is longer than the prompts it takes.
        self.context = min(positions.context_tokens(model), encoder.tokenizer.model_max_length)
        self.known = positions.known_tokens(model)
        self.sharing = Sharing(stretch=positions.stretch(model))

    def warm_up(self) -> None:
        """Learn which rows may share a call."""
        room = max(1, min(self.context, self.sharing.anywhere))
        texts = [f"{n} {WORDS[n:]} {WORDS}" for n in range(3)]
        rows = [prompt.ids[:room] for prompt in self.encoder.encode([Record(-1, text) for text in texts])]
        rows = [row[:LONGEST] for row in rows]
        allowed, why = try_rows(lambda rows: self._outputs(rows)[:, None], rows, tolerance(self.model))
        self.sharing = self.sharing.limited(allowed)
        if why:
            print(f"transformers engine: batching with {allowed.company}: {why}", flush=True)

    def plan(self, prompts: Sequence[Prompt]) -> list[list[Prompt]]:
        def mixes(first: Prompt, prompt: Prompt) -> bool:
            return self.sharing.allows(len(first.ids), len(prompt.ids), 0)

        return cut(prompts, self.batch, self.batch_tokens, mixes)

    def serve(self, prompts: Sequence[Prompt]) -> list[Completion]:
        check(prompts, lambda length: length, self.context, self.known)
        return self._completions(self._outputs([prompt.ids for prompt in prompts]))

    def _outputs(self, rows: Sequence[list[int]]) -> Any:
        """What the model makes of rows of tokens, as (row, output)."""
        import torch

        if self.sharing.stretch is not None:
            positions.forget(self.model)
        width, padding = max(map(len, rows)), self._padding(rows)
        ids = [row + [padding] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        device = self.model.device
        with torch.inference_mode():
            marked = torch.tensor(mask, device=device)
            output = self.model(input_ids=torch.tensor(ids, device=device), attention_mask=marked)
            return self._of_each(output, marked)

    def describe(self) -> dict[str, Any]:
        return {"batching": self.sharing.rows.batching}

    def _padding(self, rows: Sequence[list[int]]) -> int:
        return self.encoder.padding(self.known)

    def _of_each(self, output: Any, mask: Any) -> Any:
        raise NotImplementedError

    def _completions(self, outputs: Any) -> list[Completion]:
        raise NotImplementedError


class Embedding(Head):
    """The mean of a prompt's last hidden states, of length 1."""

    def _of_each(self, output: Any, mask: Any) -> Any:
        weights = mask.unsqueeze(-1).float()
        mean = (output.last_hidden_state.float() * weights).sum(1) / weights.sum(1)
        return mean / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)

    def _completions(self, outputs: Any) -> list[Completion]:
        # Seven digits are what float32 has; more would only make the results longer.
        return [Completion("", 0, {"embedding": [round(x, 7) for x in row]}) for row in outputs.tolist()]


class Classification(Head):
    """The label with the highest score, and the scores of all."""

    def __init__(self, model: Any, encoder: Encoder, batch: int, batch_tokens: int):
        super().__init__(model, encoder, batch, batch_tokens)
        self.config = model.config.get_text_config()
        self.unpadded = self.config.pad_token_id is None
        self.labels = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
        # One label, or several that may all be true, have a probability each; else they share one.
        self.independent = len(self.labels) == 1 or model.config.problem_type == "multi_label_classification"

    def _padding(self, rows: Sequence[list[int]]) -> int:
        """A decoder scores the last token that is not padding: where that is ours to choose, no prompt ends in it."""
        if self.unpadded:
            ends = {row[-1] for row in rows}
            self.config.pad_token_id = next(token for token in range(len(ends) + 1) if token not in ends)
        return int(self.config.pad_token_id)

    def _of_each(self, output: Any, mask: Any) -> Any:
        return output.logits.float()

    def _completions(self, outputs: Any) -> list[Completion]:
        scores = outputs.sigmoid() if self.independent else outputs.softmax(-1)
        completions = []
        for row in scores.tolist():
            by_label = dict(zip(self.labels, (round(score, 7) for score in row), strict=True))
            completions.append(Completion(max(by_label, key=lambda label: by_label[label]), 0, {"scores": by_label}))
        return completions
