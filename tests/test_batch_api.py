"""Requests that records bring along, in OpenAI's batch format, and the answers in that format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from glide.errors import InputError
from glide.sweep import batch_api
from glide.sweep.opening import open_results
from glide.sweep.out import ERRORS, OUTPUT, PARQUET
from glide.sweep.prepare import Sweep, prepare
from tests.results_rig import store

CHAT = {
    "custom_id": "c", "method": "POST", "url": "/v1/chat/completions",
    "body": {"model": "any", "messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4, "stream": False},
}  # fmt: skip
PLAIN = {
    "custom_id": "p", "method": "POST", "url": "/v1/completions",
    "body": {"prompt": "Once", "max_completion_tokens": 2},
}  # fmt: skip
VECTORS = {
    "custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]},
}  # fmt: skip
LINES = [CHAT, PLAIN, VECTORS]
PARSERS: dict[str, Any] = {
    batch_api.CHAT: ChatCompletion, batch_api.COMPLETIONS: Completion, batch_api.EMBEDDINGS: CreateEmbeddingResponse,
}  # fmt: skip


def sweep_of(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> Sweep:
    (folder / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    content = {"name": "s", "model": {"name": "noop", "engine": "noop"}, "records": "r.jsonl", **keys}
    content.setdefault("out", {"folder": str(folder / "out")})
    (folder / "s.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return prepare(folder / "s.yaml")[0]


def problems(folder: Path, rows: list[dict[str, Any]], **keys: Any) -> list[str]:
    with pytest.raises(InputError) as refused:
        sweep_of(folder, rows, **keys)
    return [problem.replace(f"{folder}/", "") for problem in refused.value.problems]


# ---- requests ------------------------------------------------------------------------------------


def test_each_batch_api_line_becomes_one_request(tmp_path):
    sweep = sweep_of(tmp_path, LINES, generate={"max_tokens": 99, "temperature": 0})
    requests = [sweep.request("", record) for record in sweep.records]
    assert [request["custom_id"] for request in requests] == ["/c", "/p", "/e"]
    assert requests[0]["prompt"] == CHAT["body"]["messages"] and "task" not in requests[0]
    assert (requests[1]["prompt"], requests[1]["task"]) == ("Once", "complete")
    assert (requests[2]["prompt"], requests[2]["task"]) == (["a", "b"], "embed")
    # A record's own option wins, also under another name.
    assert [request["generate"]["max_new_tokens"] for request in requests[:2]] == [4, 2]
    assert requests[1]["generate"]["temperature"] == 0 and "model" not in requests[0]["generate"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"method": "GET"}, "the method is 'GET'"),
        ({"url": "/v1/images"}, "the url is '/v1/images'"),
        ({"body": {"messages": "Why?"}}, "`messages` in the body: it is not a list of messages"),
        ({"body": {"messages": [{"role": "user"}, "x"]}}, "`messages` in the body: a message is not an object"),
        ({"body": {"messages": [{"role": "user", "content": 3}]}}, "neither a string nor a list of parts"),
        ({"body": {**CHAT["body"], "stream": True}}, "`stream` is not possible in a batch"),
        ({"url": "/v1/completions", "body": {"prompt": ["a", "b"]}}, "the body has several prompts"),
        ({"url": "/v1/completions", "body": {"prompt": [1, 2]}}, "the body has several prompts"),
        ({"url": "/v1/embeddings", "body": {"input": [[1, 2]]}}, "a text to embed is not a string"),
    ],
)
def test_invalid_batch_api_line_is_reported_with_number(tmp_path, change, said):
    (problem,) = problems(tmp_path, [PLAIN, {**CHAT, **change}])
    assert problem.startswith("r.jsonl:2: ") and said in problem


def test_sweep_with_both_requests_and_prompts_is_refused(tmp_path):
    assert "remove `prompts`" in problems(tmp_path, [CHAT], prompts={"p": "{custom_id}"})[0]
    assert "needs `prompts` or `messages`" in problems(tmp_path, [{"custom_id": "a"}])[0]
    assert "not a request of OpenAI's Batch API" in problems(tmp_path, [{"custom_id": "a"}], format="openai")[0]
    assert "but not both" in problems(tmp_path, [CHAT], prompts={"p": "x"}, messages="{m}")[0]
    assert "must name one field" in problems(tmp_path, [CHAT], messages="{m} and {n}")[0]


def test_fingerprint_changes_with_body_of_batch_api_request(tmp_path):
    before = sweep_of(tmp_path, LINES).fingerprints[""]
    changed = {**CHAT, "body": {**CHAT["body"], "temperature": 1, "seed": 3}}
    after = sweep_of(tmp_path, [changed, PLAIN, VECTORS]).fingerprints[""]
    assert [old == new for old, new in zip(before, after, strict=True)] == [False, True, True]


# ---- messages and axes ---------------------------------------------------------------------------


def test_prompts_may_be_messages_with_fields(tmp_path):
    rows = [{"custom_id": "a", "q": "Why {x}?", "generate": {"max_tokens": 7}}]
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{{q}}: {q}"}]
    sweep = sweep_of(tmp_path, rows, prompts={"chat": chat, "text": "{q}"}, generate={"max_new_tokens": 1})
    (record,) = sweep.records
    request = sweep.request("chat", record)
    assert request["prompt"] == [chat[0], {"role": "user", "content": "{q}: Why {x}?"}]
    assert request["generate"] == {"max_new_tokens": 7}
    assert problems(tmp_path, rows, prompts={"c": [{"role": "user", "content": "{none}"}]})[0].startswith(
        "r.jsonl:1: no"
    )


def test_chat_messages_are_read_from_record_field(tmp_path):
    talk = [{"role": "user", "content": "Why?"}]
    rows = [{"custom_id": "a", "m": talk}, {"custom_id": "b", "m": json.dumps(talk)}]
    sweep = sweep_of(tmp_path, rows, messages="{m}")
    assert [sweep.request("", record)["prompt"] for record in sweep.records] == [talk, talk]
    wrong = problems(tmp_path, [{"custom_id": "a", "m": "hello"}], messages="{m}")
    assert wrong == ["r.jsonl:1: field 'm' holds no messages: it is a text, but not a JSON list of messages"]


def test_prompts_and_variants_make_cells(tmp_path):
    variants = {"greedy": {"temperature": 0}, "hot": {"temperature": 1, "n": 4, "max_tokens": 9}}
    keys: dict[str, Any] = {"variants": variants, "generate": {"max_new_tokens": 3}}
    sweep = sweep_of(tmp_path, [{"custom_id": "a"}], prompts={"p": "x", "q": "y"}, **keys)
    assert list(sweep.cells) == ["p/greedy", "p/hot", "q/greedy", "q/hot"] and sweep.total == 4
    request = sweep.request("q/hot", sweep.records[0])
    assert (request["prompt"], request["generate"]) == ("y", {"temperature": 1, "n": 4, "max_new_tokens": 9})
    assert list(sweep_of(tmp_path, [CHAT], variants=variants).cells) == ["greedy", "hot"]


def test_option_refused_in_variant_is_reported_with_its_line(tmp_path, llama):
    model = {"name": "m", "engine": "transformers", "path": str(llama)}
    variants = {"good": {"temperature": 1}, "bad": {"temperature": -1}}
    (problem,) = problems(tmp_path, [{"custom_id": "a"}], model=model, prompts={"p": "x"}, variants=variants)
    assert "variants.bad.temperature: the transformers engine refuses temperature: must be a number of 0" in problem


# ---- answers -------------------------------------------------------------------------------------


def result(name: str, **fields: Any) -> dict[str, Any]:
    base = {
        "custom_id": name,
        "text": "because",
        "tokens": 2,
        "error": None,
        "glidein": "g",
        "attempts": 1,
        "seconds": 0.1,
    }
    return {**base, "finish_reason": "length", "usage": {"prompt_tokens": 3, "completion_tokens": 2}, **fields}


def finished(sweep: Sweep, results: dict[str, dict[str, Any]]) -> Path:
    """Write results as a driver does, in reverse order, and finish the sweep."""
    opened = open_results(sweep, "run")
    try:
        for cell in sweep.cells:
            for number in reversed(range(len(sweep.records))):
                found = results[sweep.records[number].custom_id]
                store(opened, {**found, "custom_id": opened.job_ids.format(cell, number, found["custom_id"])})
        opened.finish({})
    finally:
        opened.close()
    return sweep.out


def test_openai_output_has_format_of_batch_api(tmp_path):
    out = {"folder": str(tmp_path / "out"), "format": "openai"}
    lost = {**CHAT, "custom_id": "lost"}
    vectors = result("e", text="", tokens=0, embeddings=[[0.5, 1.0], [1.5, 2.0]])
    vectors.pop("finish_reason")
    error = {"type": "PromptTooLong", "message": "600 tokens"}
    sweep = sweep_of(tmp_path, [*LINES, lost], out=out)
    folder = finished(sweep, {
        "c": result("c"), "p": result("p"), "e": vectors, "lost": result("lost", text=None, tokens=0, error=error),
    })  # fmt: skip
    lines = [json.loads(line) for line in (folder / OUTPUT).read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["c", "p", "e"]
    for line, request in zip(lines, LINES, strict=True):
        assert line["response"]["status_code"] == 200 and line["error"] is None
        PARSERS[request["url"]].model_validate(line["response"]["body"], strict=True)
    body = lines[0]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "because" and body["choices"][0]["finish_reason"] == "length"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} and body["model"] == "any"
    assert [each["embedding"] for each in lines[2]["response"]["body"]["data"]] == [[0.5, 1.0], [1.5, 2.0]]
    (bad,) = [json.loads(line) for line in (folder / ERRORS).read_text().splitlines()]
    assert (bad["custom_id"], bad["response"]["status_code"]) == ("lost", 400)
    assert bad["response"]["body"]["error"]["message"] == "600 tokens"


def test_results_are_written_as_parquet_table(tmp_path):
    from pyarrow import parquet

    out = {"folder": str(tmp_path / "out"), "format": "parquet"}
    rows = [{"custom_id": name} for name in "ab"]
    sweep = sweep_of(tmp_path, rows, prompts={"p": "x"}, variants={"v": {}}, out=out)
    found = {"a": result("a", scores={"yes": 0.5}), "b": result("b", text="\ud83d half")}
    folder = finished(sweep, found)
    table = parquet.read_table(folder / "p" / "v" / PARQUET).to_pylist()
    assert [row["custom_id"] for row in table] == ["a", "b"] and table[0]["usage"]["prompt_tokens"] == 3
    assert json.loads(table[0]["other"]) == {"scores": {"yes": 0.5}} and table[1]["text"] == "? half"


def test_cells_have_their_own_folders_and_survive_resume(tmp_path):
    sweep = sweep_of(tmp_path, [{"custom_id": "a"}], prompts={"p": "x"}, variants={"u": {"n": 1}, "v": {"n": 2}})
    folder = finished(sweep, {"a": result("a")})
    assert sorted(str(path.relative_to(folder)) for path in folder.glob("p/*/*")) == [
        "p/u/results.jsonl", "p/v/results.jsonl",
    ]  # fmt: skip
    again = open_results(sweep, "run")
    assert (again.finished, again.notes) == (True, [])
    again.close()
    # With a new variant, all results stay. Without a variant, its results are moved aside.
    grown = sweep_of(tmp_path, [{"custom_id": "a"}], prompts={"p": "x"}, variants={"v": {"n": 2}, "w": {"n": 3}})
    opened = open_results(grown, "run")
    pending = [request["custom_id"].partition("/")[0] for request in opened.pending(())]
    assert (opened.resumed, pending) == (1, ["p:w"]) and not (folder / "p" / "u").exists()
    opened.close()
