"""LoRA adapters as an axis of a sweep: a node loads the model once, and each adapter has its own results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from glide.bench.gguf_file import write_adapter_gguf, write_gguf
from glide.condor import Collector
from glide.errors import InputError
from glide.server.engines.base import INTERRUPT, RecordTimeout
from glide.server.engines.transformers.adapters import _uninterrupted
from glide.sweep.prepare import prepare
from glide.system import files_below
from glide.template import FileSet, Template
from glide.vocabulary import Exit, Machine, State
from tests.conftest import eventually
from tests.server_rig import Server, failure
from tests.test_serving_programs import FLOAT32, GENERATE, PROMPT, VERIFIER, claims

MODEL = VERIFIER / "model"
RECORDS = [{"custom_id": f"r{number}", "text": f"text {number}"} for number in range(20)]
NAMES = ("first", "second.v2")  # a name with a dot is not possible within peft itself


@pytest.fixture(scope="session")
def adapters(tmp_path_factory) -> dict[str, Path]:
    """Two random adapters of the tiny verifier, which change most of its texts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    found = {}
    for number, name in enumerate(NAMES):
        torch.manual_seed(number)
        parts = ["q_proj", "v_proj", "down_proj"][: 2 + number]
        config = LoraConfig(
            r=4 + 4 * number, lora_alpha=16, target_modules=parts, init_lora_weights=False, task_type="CAUSAL_LM"
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), config)
        found[name] = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def expected(adapters) -> dict[str, list[tuple[str, float]]]:
    """The texts of the last 300 claims with the model and with each adapter, from plain transformers and peft.

    Each text comes with its smallest margin: by how much the log probability of the best token exceeds the second one.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    texts = {}
    for name in ("none", *NAMES):
        model = AutoModelForCausalLM.from_pretrained(MODEL)
        if name != "none":
            model = PeftModel.from_pretrained(model, adapters[name])
        texts[name] = [_text(model.eval(), tokenizer, PROMPT.format_map(claim)) for claim in claims(300)]
    return texts


def _text(model: Any, tokenizer: Any, prompt: str) -> tuple[str, float]:
    given = tokenizer(prompt, return_tensors="pt")
    found = model.generate(**given, **GENERATE, pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    best = [logits[0].log_softmax(-1).topk(2).values for logits in found.logits]
    text = tokenizer.decode(found.sequences[0][given["input_ids"].shape[1] :], skip_special_tokens=True)
    return text, min(float(first - second) for first, second in best)


def paths(adapters: dict[str, Path]) -> dict[str, str]:
    return {name: str(path) for name, path in adapters.items()}


# ---- the sweep file ------------------------------------------------------------------------------


def verifier(**options: Any) -> dict[str, Any]:
    return {"name": "verifier", "engine": "transformers", "path": str(MODEL), "options": options}


@pytest.mark.models
def test_model_and_each_adapter_have_cells(sweep, adapters):
    (one,) = prepare(sweep.write(RECORDS, model=verifier(), adapters=paths(adapters)).file)
    assert list(one.cells) == ["none/plain", "first/plain", "second.v2/plain"]
    assert one.total == 3 * len(RECORDS)
    record = next(iter(one.records))
    assert one.request("none/plain", record).get("adapter", "") == ""
    assert one.request("second.v2/plain", record)["adapter"] == "second.v2"
    prints = [set(one.fingerprints[cell]) for cell in one.cells]
    assert not prints[0] & prints[1] and not prints[1] & prints[2]


@pytest.mark.models
def test_results_stay_valid_when_an_adapter_is_added(sweep, adapters):
    one = {"first": str(adapters["first"])}
    (before,) = prepare(sweep.write(RECORDS, model=verifier(), adapters=one).file)
    (after,) = prepare(sweep.write(RECORDS, model=verifier(), adapters=paths(adapters)).file)
    for cell in before.cells:
        assert before.fingerprints[cell] == after.fingerprints[cell]
    assert before.template.digest != after.template.digest


@pytest.mark.models
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: shutil.rmtree(folder), r"adapters\.a: .*is not a folder"),
        (lambda folder: (folder / "adapter_config.json").unlink(), r"adapters\.a: .*has no adapter_config\.json"),
        (lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"), "is a pickle"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}'), "only LORA is possible"),
        (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not the description of an adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 99), "it is damaged"),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b""), "it is damaged"),
    ],
)
def test_wrong_adapters_are_refused_with_their_place(sweep, adapters, change, problem):
    shutil.copytree(adapters["first"], sweep.folder / "a")
    change(sweep.folder / "a")
    with pytest.raises(InputError, match=problem) as found:
        prepare(sweep.write(RECORDS, model=verifier(), adapters={"a": "a"}).file)
    assert "sweep.yaml:" in str(found.value)


@pytest.mark.models
def test_adapter_of_another_model_is_refused_before_submission(sweep, adapters, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters["first"], sweep.folder / "a")
    weights = load_file(sweep.folder / "a" / "adapter_model.safetensors")
    weights = {name: torch.zeros(8, 64) if "lora_A" in name else each for name, each in weights.items()}
    save_file(weights, sweep.folder / "a" / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"does not fit the model: model\.layers\.\d\.self_attn.* \[128, 128\]"):
        prepare(sweep.write(RECORDS, model=verifier(), adapters={"a": "a"}).file)


@pytest.mark.models
def test_shapes_of_transposed_layers_are_compared_the_other_way(sweep, adapters):
    """The layers of GPT-2, for example, have the inputs first (fan_in_fan_out)."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters["first"], sweep.folder / "a")
    shutil.copytree(MODEL, sweep.folder / "model")
    config = json.loads((sweep.folder / "a" / "adapter_config.json").read_text())
    (sweep.folder / "a" / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": True}))
    weights = load_file(sweep.folder / "model" / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(128, 300)
    save_file(weights, sweep.folder / "model" / "model.safetensors")
    matrices = load_file(sweep.folder / "a" / "adapter_model.safetensors")
    matrices["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"] = torch.zeros(300, 4)
    save_file(matrices, sweep.folder / "a" / "adapter_model.safetensors")
    model = {"name": "gpt", "engine": "transformers", "path": "model"}
    prepare(sweep.write(RECORDS, model=model, adapters={"a": "a"}).file)


@pytest.mark.models
@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"name": "m", "engine": "openai", "options": {"url": "http://h/v1", "model": "m"}}, "openai engine cannot"),
        ({"name": "m", "engine": "server", "options": {"command": "serve {port}"}}, "a command cannot use adapters"),
        (
            {"name": "m", "engine": "server", "path": str(MODEL), "options": {"program": "transformers"}},
            "transformers cannot use adapters; set `program` to one of vllm, sglang, llamacpp",
        ),
        (verifier(batching="continuous"), "continuous batching cannot use adapters"),
    ],
)
def test_engines_without_adapters_are_refused(sweep, adapters, model, problem):
    with pytest.raises(InputError, match=problem):
        prepare(sweep.write(RECORDS, model=model, adapters=paths(adapters)).file)


@pytest.mark.parametrize("name", ["none", "summary.json", "a b", "-x"])
def test_names_that_cannot_be_adapters_are_refused(sweep, name):
    with pytest.raises(InputError, match="adapters"):
        prepare(sweep.write(RECORDS, adapters={name: "a"}).file)


# ---- engines -------------------------------------------------------------------------------------


def requests(name: str) -> list[dict[str, Any]]:
    adapter = {} if name == "none" else {"adapter": name}
    return [
        {"custom_id": f"{name}{number}", "prompt": PROMPT.format_map(claim), **adapter}
        for number, claim in enumerate(claims(300))
    ]


@pytest.mark.models
def test_mixed_records_get_the_texts_of_their_adapters(start, adapters, expected):
    """All prompts begin alike. A prefix that was computed with another adapter would change the texts."""
    sets = {name: FileSet(str(path), Template.of_folder("", "", path, {}).files) for name, path in adapters.items()}
    template = Template.of_folder("verifier", "transformers", MODEL, {"dtype": "float32", "device": "cpu"})
    server: Server = start(Template(**{**vars(template), "adapters": sets}))
    server.reached(State.WARM)
    assert Machine.ADAPTERS not in server.now()
    mixed = [one for several in zip(*map(requests, expected), strict=True) for one in several]
    texts = {each["custom_id"]: each["text"] for each in server.call([{"generate": GENERATE}, *mixed]).results()}
    for name, wanted in expected.items():
        assert [texts[f"{name}{number}"] for number in range(300)] == [text for text, _ in wanted]
    assert len({tuple(each) for each in expected.values()}) == 3
    assert server.now()[Machine.ADAPTERS] == ",".join(NAMES)


def test_unknown_adapter_is_wrong_input(start):
    server: Server = start()
    server.reached(State.WARM)
    code, errors = server.call([{"custom_id": "x", "prompt": "p", "adapter": "b"}]).end()
    assert code == Exit.INPUT and "record 'x': no adapter 'b'; the model has none" in errors


@pytest.mark.models
def test_adapter_that_does_not_fit_fails_only_its_records(start, adapters, tmp_path):
    """The adapter has matrices for a module that the model lacks. Twelve more adapters show that names do not mix."""
    shutil.copytree(adapters["first"], tmp_path / "wrong")
    config = json.loads((tmp_path / "wrong" / "adapter_config.json").read_text()) | {"target_modules": ["no_such"]}
    (tmp_path / "wrong" / "adapter_config.json").write_text(json.dumps(config))
    folders = {"wrong": tmp_path / "wrong", **{f"a{number}": adapters["first"] for number in range(12)}}
    sets = {name: FileSet(str(path), Template.of_folder("", "", path, {}).files) for name, path in folders.items()}
    template = Template.of_folder("verifier", "transformers", MODEL, {"dtype": "float32", "device": "cpu"})
    server: Server = start(Template(**{**vars(template), "adapters": sets}))
    server.reached(State.WARM)
    names = ["wrong", "a1", "a11", "a1", "wrong", "a10", ""]
    sent = [
        {"custom_id": str(number), "prompt": "Claim:", **({"adapter": name} if name else {})}
        for number, name in enumerate(names)
    ]
    results = {each["custom_id"]: each for each in server.call([{"generate": GENERATE}, *sent]).results()}
    failed = [results[str(number)]["error"] for number, name in enumerate(names) if name == "wrong"]
    assert all(each["type"] == "AdapterError" and "no_such" in each["message"] for each in failed) and len(failed) == 2
    texts = {results[str(number)]["text"] for number, name in enumerate(names) if name.startswith("a")}
    assert len(texts) == 1 and results["6"]["error"] is None


@pytest.mark.models
def test_adapter_that_changed_after_it_was_described_is_not_used(start, adapters, tmp_path):
    shutil.copytree(adapters["first"], tmp_path / "a")
    sets = {"a": FileSet(str(tmp_path / "a"), Template.of_folder("", "", tmp_path / "a", {}).files)}
    template = Template.of_folder("verifier", "transformers", MODEL, {"dtype": "float32", "device": "cpu"})
    server: Server = start(Template(**{**vars(template), "adapters": sets}))
    server.reached(State.WARM)
    weights = bytearray((tmp_path / "a" / "adapter_model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(weights)
    (result,) = server.call([{"custom_id": "x", "prompt": "Claim:", "adapter": "a"}]).results()
    assert "not the file that the template describes" in result["error"]["message"]


@pytest.mark.models
def test_interrupt_waits_until_the_adapter_is_switched():
    """The signal may reach any thread of the process, but its handler runs in the main thread."""
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    before = signal.getsignal(INTERRUPT)
    switched = False
    try:
        with pytest.raises(RecordTimeout), _uninterrupted():
            os.kill(os.getpid(), INTERRUPT)
            time.sleep(0.2)
            switched = True
    finally:
        stop.set()
        other.join()
    assert switched and signal.getsignal(INTERRUPT) == before


@pytest.mark.models
def test_package_that_adapters_need_is_named(start, adapters, monkeypatch, tmp_path):
    (tmp_path / "hidden" / "peft").mkdir(parents=True)
    (tmp_path / "hidden" / "peft" / "__init__.py").write_text("raise ImportError('no module of this name')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"))
    sets = {"a": FileSet(str(adapters["first"]), Template.of_folder("", "", adapters["first"], {}).files)}
    template = Template.of_folder("m", "transformers", MODEL, {"device": "cpu"})
    assert "adapters need the package peft" in failure(start(Template(**{**vars(template), "adapters": sets})))


# ---- the pool ------------------------------------------------------------------------------------


@pytest.mark.pool
@pytest.mark.models
@pytest.mark.parametrize("engine", ["transformers", "llamacpp"])
def test_sweep_with_two_adapters_loads_the_model_once(factory, sweep, adapters, expected, engine, tmp_path):
    model, given = verifier(dtype="float32"), paths(adapters)
    if engine == "llamacpp":
        write_gguf(MODEL, tmp_path / "gguf" / "verifier.gguf")
        options = {"program": "llamacpp", "args": FLOAT32}
        model = {"name": "verifier-gguf", "engine": "server", "path": str(tmp_path / "gguf"), "options": options}
        for name, path in adapters.items():
            (tmp_path / name).mkdir()
            write_adapter_gguf(path, MODEL, tmp_path / name / "adapter.gguf")
            given[name] = str(tmp_path / name)
    sweep.write(claims(300), model=model, adapters=given, prompts={"plain": PROMPT}, generate=GENERATE, glideins=1)
    run = sweep.run()
    assert run.returncode == 0, run.stderr
    for name, wanted in expected.items():
        texts = [each["text"] for each in sweep.results(f"{name}/plain")]
        margins = [margin for ours, (theirs, margin) in zip(texts, wanted, strict=True) if ours != theirs]
        # With these adapters, llama.cpp's log probabilities differ from peft's by up to 0.01, and depend on the batch.
        close = 0.03 if engine == "llamacpp" else 0.0
        assert all(margin < close for margin in margins), margins
        assert sum(margin < close for _, margin in wanted) < 10
    wanted_lane = f'{Machine.MODEL} == "{model["name"]}" && {Machine.ADAPTERS} == "{",".join(NAMES)}"'
    lane, *_ = eventually(lambda: Collector().lanes([Machine.SOCKET], wanted_lane), "both adapters are advertised")
    assert len({each["glidein"] for name in expected for each in sweep.results(f"{name}/plain")}) == 1
    log = next(files_below(Path(lane[Machine.SOCKET]).parents[1], "ModelServerLog")).read_text()
    assert log.count(f"{model['name']} Loading") == 1
