"""`glide serve` with real engines: the same texts as without it, structured output, and tokens as they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from glide.bench.gguf_file import write_gguf
from glide.serve.models import OfferedModel
from glide.template import Template
from tests.models import Plain, tiny_llama, with_template
from tests.serve_rig import Serving

pytestmark = pytest.mark.models
VERIFIER = Path(__file__).resolve().parents[1] / "workflows" / "promptverify" / "model"
CLAIM = "Claim: the river flows north.\nEvidence: nobody has seen it.\nVerdict:"


@pytest.fixture
def client_of(serving: Callable[..., Serving]) -> Callable[..., openai.OpenAI]:
    """Serve the model of a folder with the name m, and return a client."""

    def begin(engine: str, folder: Path, **options: Any) -> openai.OpenAI:
        template = Template.of_folder("m", engine, folder, options)
        return serving(OfferedModel("m", template, 1, None, Path("/nowhere"), "", folder)).client()

    return begin


def test_transformers_gives_the_same_texts_as_plain(client_of):
    client, plain = client_of("transformers", VERIFIER, dtype="float32"), Plain(VERIFIER)
    prompts = [CLAIM, CLAIM.replace("north", "south"), "A"]
    answer = client.completions.create(model="m", prompt=prompts, max_tokens=4, temperature=0)
    expected = [plain(prompt, max_new_tokens=4, do_sample=False) for prompt in prompts]
    assert [choice.text for choice in answer.choices] == [text for text, _ in expected]
    assert answer.usage is not None and answer.usage.completion_tokens == sum(tokens for _, tokens in expected)


def test_option_that_the_engine_lacks_is_named(client_of):
    client = client_of("transformers", VERIFIER, dtype="float32")
    with pytest.raises(openai.BadRequestError, match="the transformers engine refuses best_of") as caught:
        client.completions.create(model="m", prompt="x", best_of=3)
    assert caught.value.param == "best_of"
    with pytest.raises(openai.BadRequestError, match="the transformers engine refuses temperature"):
        client.completions.create(model="m", prompt="x", temperature=-1)
    with pytest.raises(openai.BadRequestError) as too_long:
        client.completions.create(model="m", prompt="word " * 5000, max_tokens=4)
    assert too_long.value.code == "PromptTooLong"


def test_structured_output_follows_its_schema(client_of, tmp_path):
    client = client_of("transformers", with_template(tiny_llama(tmp_path / "llama")), dtype="float32")
    schema = {
        "type": "object", "properties": {"verdict": {"enum": ["yes", "no"]}}, "required": ["verdict"],
        "additionalProperties": False,
    }  # fmt: skip
    answer = client.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "Is it true?"}], max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "verdict", "schema": schema}},
    )  # fmt: skip
    assert json.loads(str(answer.choices[0].message.content))["verdict"] in ("yes", "no")


def test_llamacpp_streams_what_it_answers_at_once(client_of, tmp_path):
    (tmp_path / "gguf").mkdir()
    write_gguf(VERIFIER, tmp_path / "gguf" / "verifier.gguf")
    client = client_of("server", tmp_path / "gguf", program="llamacpp")
    # A text of a few tokens could arrive in one piece, because this model needs only a millisecond for each. At this
    # temperature, its text is random and long.
    options: dict[str, Any] = {
        "model": "m", "prompt": CLAIM, "max_tokens": 400, "temperature": 100, "top_p": 1, "seed": 7,
        "extra_body": {"min_p": 0, "top_k": 0},
    }  # fmt: skip
    whole = client.completions.create(**options)
    chunks = list(client.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices and chunk.choices[0].text]
    assert "".join(pieces) == whole.choices[0].text
    assert len(pieces) > 1 and chunks[-1].usage == whole.usage
    assert whole.usage is not None and whole.usage.completion_tokens > 100
