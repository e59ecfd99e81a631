"""What a sweep file may say about a model for a serving program: files, needs, arguments, and whose code it is."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from glide.config import SiteFile
from glide.errors import InputError, TemplateError
from glide.factory.actions import Retarget
from glide.factory.plan import plan
from glide.factory.snapshot import Snapshot
from glide.factory.suitability import gpu_macros, lack
from glide.files.file_set import without_other_files
from glide.programs import PROGRAMS
from glide.server.engines.server.command import command_line
from glide.sweep.models import prepare_model
from glide.template import Template
from glide.template.needs import Needs
from tests.snapshots import demand, glidein, lane, site

VALUES = {
    name: name
    for name in (
        "path",
        "file",
        "model",
        "port",
        "address",
        "python",
        "here",
        "cpus",
        "sequences",
        "context",
        "connections",
    )
}
VARIANTS = ("model-Q4_K_M.gguf", "model-Q8_0.gguf", "model-F16-00001-of-00002.gguf", "model-F16-00002-of-00002.gguf")


@pytest.fixture
def write(tmp_path: Path):
    """Write a sweep file with a model, and the model's folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (*VARIANTS, "config.json", "model.safetensors"):
        (folder / name).write_text("{}")

    def write(options: dict, **model) -> Path:
        model = {"name": "m", "engine": "server", "path": "model", "options": options, **model}
        sweep = {"name": "s", "model": model, "records": "r.jsonl", "prompts": {"plain": "{text}"}}
        (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
        return tmp_path / "s.yaml"

    return write


def problem(source: Path) -> str:
    with pytest.raises(InputError) as refused:
        prepare_model(source)
    (found,) = refused.value.problems
    return found


# ---- options and files ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "either a program or a command"),
        ({"program": "vllm", "command": "x {port}"}, "either a program or a command"),
        ({"program": "tgi"}, "program"),
        ({"program": "vllm", "args": ["--port", "80"]}, "glide itself sets --port"),
        ({"program": "vllm", "args": ["--host=0.0.0.0"]}, "glide itself sets --host"),
        ({"command": "serve {path}"}, "needs {port} or {socket}"),
        ({"command": "serve {path} {prot}"}, "unknown placeholder {prot}"),
        ({"command": "serve '{path} {port}"}, "cannot be read"),
        ({"program": "vllm", "parallel": -1}, "parallel"),
        ({"program": "vllm", "system": "Be brief."}, "chat: true"),
    ],
)
def test_wrong_options_of_program_are_refused(write, options, words):
    found = problem(write(options))
    assert words in found and "s.yaml:" in found and "options" in found


def test_program_without_model_folder_is_refused(write):
    assert "needs a path" in problem(write({"program": "vllm"}, path=None))
    template = prepare_model(write({"command": "serve-nothing {port}"}, path=None))
    assert template.path is None


def test_numbers_in_arguments_need_no_quotes(write):
    template = prepare_model(write({"program": "vllm", "args": ["--max-model-len", 8192]}))
    assert json.loads(template.to_json())["options"]["args"] == ["--max-model-len", "8192"]


def test_several_gguf_models_need_a_choice(write):
    found = problem(write({"program": "llamacpp"}))
    assert "has 3 models" in found and "model-Q4_K_M.gguf" in found and "files:" in found
    assert set(prepare_model(write({"program": "llamacpp"}, files="*Q4_K_M.gguf")).files) == {VARIANTS[0]}
    both = prepare_model(write({"program": "llamacpp"}, files=["*F16*.gguf"]))
    assert set(both.files) == set(VARIANTS[2:])
    assert "matches '*Q5*.gguf'; it has config.json" in problem(write({"program": "llamacpp"}, files="*Q5*.gguf"))


def test_files_choose_one_set_of_weights(write):
    template = prepare_model(write({"program": "vllm"}, files=["*.json", "*.safetensors"]))
    assert set(template.files) == {"config.json", "model.safetensors"}
    assert "no config.json; a model for vllm needs one" in problem(write({"program": "vllm"}, files="*.safetensors"))


def test_engine_sees_only_the_chosen_files(tmp_path):
    folder, view = tmp_path / "model", tmp_path / "view"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.gguf", "b.gguf", "sub/c", ".hidden"):
        (folder / name).write_text(name)
    assert without_other_files(folder, ["a.gguf", "b.gguf", "sub/c"], view) == folder
    assert without_other_files(folder, ["a.gguf", "sub/c"], view) == view
    assert sorted(str(path.relative_to(view)) for path in view.rglob("*") if path.is_file()) == ["a.gguf", "sub/c"]
    assert (view / "sub" / "c").read_text() == "sub/c"


# ---- whose code it is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, code",
    [
        ({"program": "vllm"}, ""),
        ({"program": "vllm", "args": ["--max-model-len", "8192", "--dtype=float16"]}, ""),
        ({"program": "vllm", "args": ["--trust-remote-code"]}, "vllm with --trust-remote-code"),
        ({"program": "vllm", "args": ["--trust-rem"]}, "vllm with --trust-rem"),
        ({"program": "vllm", "args": ["--dtype", "float16", "--chat-template=x"]}, "vllm with --chat-template"),
        ({"program": "llamacpp", "args": ["--tools", "all"]}, "llamacpp with --tools"),
        ({"program": "vllm", "args": "--trust-remote-code"}, "arguments that are not texts"),
        ({"program": "vllm", "args": [["--trust-remote-code"]]}, "arguments that are not texts"),
        ({"program": "transformers", "args": ["/shared/evil"]}, "transformers with '/shared/evil'"),
        ({"program": "vllm", "args": ["--enforce-eager", "/evil"]}, "vllm with '/evil'"),
        ({"program": "vllm", "args": ["--dtype", "half", "/evil"]}, "vllm with '/evil'"),
        ({"program": "vllm", "args": ["--dtype=half", "/evil"]}, "vllm with '/evil'"),
        ({"command": "sh -c 'id' {port}"}, "a command"),
        ({"program": ["vllm"]}, "the program ['vllm']"),
        ({}, "the program None"),
    ],
)  # fmt: skip
def test_commands_and_unlisted_flags_are_code_of_the_user(options, code):
    template = Template("m", "server", "/model", options=options)
    assert template.code() == code
    assert template.for_user(lambda: "ada@here").owner == ("ada@here" if code else "")
    assert template.serves("eve@here") == (not code)


def test_entry_can_list_programs_and_flags():
    template = Template("m", "server", "/model", options={"program": "vllm", "args": ["--max-model-len", "8192"]})
    several = {"name": "here", "max_glideins": 4, "owners": ["us@here", "them@here"]}

    def action(options: dict, user: str = "", **entry) -> str:
        spec = replace(template, options=options, user=user)
        snapshot = Snapshot(demands=(demand(spec=spec, user="us@here"),), user="us@here")
        (only,) = plan(snapshot, site({**several, **entry}))
        return getattr(only, "reason", "") if only.action == "wait" else only.action

    foreign = {"program": "vllm", "args": ["--trust-remote-code"]}
    assert action(template.options) == "submit"
    assert "vllm with --max-model-len" in action(template.options, programs={"vllm": ["--dtype"]})
    assert "the program 'vllm'" in action(template.options, programs={"llamacpp": []})
    assert action(foreign, programs={"vllm": ["--trust-remote-code"]}, user="us@here") == "submit"
    assert "set the entry's users_code or programs" in action(foreign, user="us@here")
    assert action(foreign, user="us@here", users_code=True) == "submit"
    # Without an owner, such a template would serve everybody.
    assert "vllm with --max-model-len" in action(template.options, programs={"vllm": []}, users_code=True)


def test_value_that_looks_like_a_flag_is_refused():
    """A job's ad may name any path and model. As arguments, they must not become flags."""
    for values in ({"path": "--trust-remote-code", "model": "m"}, {"path": "/m", "model": "--hf-overrides.x"}):
        with pytest.raises(TemplateError, match="begins with a hyphen"):
            command_line(PROGRAMS["vllm"], [], {**VALUES, **values}, False, lambda command: True, {})


def test_command_line_prefers_the_arguments_of_the_user():
    line = command_line(PROGRAMS["llamacpp"], ["--ctx-size=99"], VALUES, True, lambda command: not command.module, {})
    assert line[:3] == ["llama-server", "--model", "file"]
    assert line.count("--ctx-size") == 1 and line[-2:] == ["--ctx-size", "99"]
    assert line[line.index("--host") + 1] == "address" and "--port" not in line


# ---- needs ---------------------------------------------------------------------------------------


def test_needs_are_read_and_belong_to_the_digest(write):
    plain = prepare_model(write({"program": "vllm"}))
    needy = prepare_model(write({"program": "vllm"}, needs={"gpus": 2, "capability": 8.0}))
    assert needy.needs == Needs(gpus=2, capability=8.0) and needy.digest != plain.digest
    assert Template.from_json(needy.to_json()) == needy and "needs" not in json.loads(plain.to_json())
    assert "needs" in problem(write({"program": "vllm"}, needs={"gpu": 2}))


@pytest.mark.parametrize("needs", [{"gpus": -1}, {"gpus": 1.5}, {"gpus": True}, {"x": 1}, [], {"capability": "8"}])
def test_invalid_needs_in_a_job_are_refused(needs):
    fields = json.loads(Template("m", "noop").to_json())
    with pytest.raises(ValueError, match="needs"):
        Template.from_json(json.dumps({**fields, "needs": needs}))


ONE_GPU = {"name": "one", "max_glideins": 4, "request": {"gpus": 1, "gpu_memory": 24000, "cpus": 4, "memory": 16000}}


@pytest.mark.parametrize(
    "needs, args, missing",
    [
        ({"gpus": 1}, [], ""),
        ({"gpus": 2}, [], "m needs 2 GPUs, but the entry's glideins have 1"),
        ({}, ["--tensor-parallel-size", "2"], "m needs 2 GPUs"),
        ({}, ["-tp=2", "--pipeline-parallel-size", "2"], "m needs 4 GPUs"),
        ({"gpu_memory": 40000}, [], "m needs 40000 MB of memory on each GPU, but the entry's glideins have 24000"),
        ({"cpus": 8}, [], "m needs 8 CPU cores, but the entry's glideins have 4"),
        ({"memory": 32000}, [], "m needs 32000 MB of main memory, but the entry's glideins have 16000"),
        ({"capability": 8.0}, [], ""),
    ],
)
def test_entry_that_lacks_a_resource_is_named_with_the_lack(needs, args, missing):
    template = Template("m", "server", options={"program": "vllm", "args": args}, needs=Needs(**needs))
    snapshot = Snapshot(demands=(demand(spec=template),))
    (action,) = plan(snapshot, site(ONE_GPU))
    assert (action.action == "submit") == (not missing)
    assert missing in action.reason and ("one: " in action.reason or not missing)


def test_weights_of_a_program_leave_memory_for_its_cache():
    weights = {"model.safetensors": ("0" * 64, 23_000_000_000)}
    entry = SiteFile.model_validate({"site": "s", "entries": [ONE_GPU]}).entries[0]
    assert lack(Template("m", "transformers", "/m", weights), entry) == ""
    assert "needs 25556 MB" in lack(Template("m", "server", "/m", weights, {"program": "vllm"}), entry)


def test_glidein_requires_gpus_that_suit_the_model():
    entry = SiteFile.model_validate({"site": "s", "entries": [ONE_GPU]}).entries[0]
    without = SiteFile.model_validate({"site": "s", "entries": [{"name": "cpu", "max_glideins": 1}]}).entries[0]
    modern = Template("m", "noop", needs=Needs(capability=8.0))
    assert gpu_macros(None, entry) == {"gpus_minimum_memory": "24000"}
    assert gpu_macros(modern, entry) == {"gpus_minimum_memory": "24000", "gpus_minimum_capability": "8"}
    assert gpu_macros(None, without) == {}
    assert "needs 1 GPUs" in lack(modern, without)


def test_idle_glidein_on_old_gpu_gets_no_modern_model():
    there = glidein(1, "U")
    modern = demand(spec=Template("m", "noop", needs=Needs(capability=8.0)))
    entry = {"name": "here", "max_glideins": 1, "request": {"gpus": 1}}
    for capability, moved in ((6.0, False), (9.0, True)):
        snapshot = Snapshot((there,), (lane(there, name="one", gpu_capability=capability),), (modern,))
        assert any(isinstance(action, Retarget) for action in plan(snapshot, site(entry))) == moved


def test_sweep_refuses_a_site_that_lacks_what_its_model_needs(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"custom_id": "a", "text": "x"}\n')
    sweep = {"name": "s", "model": {"name": "large", "engine": "noop", "needs": {"gpus": 2}}, "records": "r.jsonl",
             "prompts": {"plain": "{text}"}}  # fmt: skip
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(sweep))
    (tmp_path / "site.yaml").write_text(yaml.safe_dump({"site": "s", "entries": [ONE_GPU]}))
    command = [sys.executable, "-m", "glide", "sweep", "run", "s.yaml", "--site", "site.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "site.yaml: no entry can run large: one: large needs 2 GPUs, but the entry's glideins have 1" in done.stderr
    assert not (tmp_path / "results").exists()
