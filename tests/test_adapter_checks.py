"""LoRA adapters in templates, in the arguments of programs, and in the files that peft writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from glide.errors import TemplateError
from glide.programs import PROGRAMS
from glide.server.engines import lora
from glide.server.engines.server.command import command_line, largest_rank, link_adapters
from glide.template import FileSet, Template

FILES = {"adapter_config.json": ("0" * 64, 1)}


def test_template_keeps_its_adapters_in_json():
    template = Template("m", "noop", adapters={"a": FileSet("/a", FILES), "b": FileSet("/b", FILES, "key", "seed")})
    again = Template.from_json(template.to_json())
    assert again == template and again.digest == template.digest
    assert template.with_only("").digest == Template("m", "noop").digest
    assert len(template.file_sets) == 2
    assert (
        "adapters" not in Template("m", "noop").to_json()
    )  # without adapters, the field is left out: an older glide refuses it


def test_adapters_of_a_private_template_are_private():
    template = Template("m", "noop", user="ann@pool", private=True, adapters={"a": FileSet("/a", FILES)})
    assert [each.owner for each in template.file_sets] == ["ann@pool"]


def test_adapter_without_files_is_refused():
    """Otherwise, the engine would get the folder that the template names, whatever is in it."""
    template = Template("m", "noop", adapters={"a": FileSet("/home/bob", {})})
    with pytest.raises(ValueError, match="an adapter has no files"):
        Template.from_json(template.to_json())


@pytest.mark.parametrize(
    ("name", "owner"), [("a", "ann@pool"), ("../a", ""), ("-a", ""), ("a=b", ""), ("a b", ""), ("", "")]
)
def test_hostile_adapters_of_a_template_are_refused(name, owner):
    template = Template("m", "noop", adapters={"a": FileSet("/a", FILES, owner=owner)})
    text = template.to_json().replace('"adapters": {"a"', f'"adapters": {{"{name}"')
    with pytest.raises(ValueError, match="adapter"):
        Template.from_json(text)


def test_programs_get_their_adapters_as_arguments(tmp_path):
    folders = {}
    for name, rank in (("a", 12), ("b", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"r": rank}))
        (tmp_path / name / f"{name}.gguf").touch()
        folders[name] = str(tmp_path / name)
    assert largest_rank(folders) == 16

    def arguments(program: str, given: dict[str, str], *args: str) -> list[str]:
        described = PROGRAMS[program]
        words = {"rank": "16", "adapters": "2"}
        values = {name: words.get(name, "x") for name in (
            "path", "file", "model", "port", "socket", "cpus", "python", "key", "address", "config", "sequences",
            "context", "here", "cache", "connections", "kv_gib", "cores", "rank", "adapters",
        )}  # fmt: skip
        return command_line(described, args, values, False, lambda command: True, given)

    vllm = " ".join(arguments("vllm", folders))
    assert "--enable-lora --max-lora-rank 16 --max-loras 2" in vllm
    assert f"--lora-modules lora:a={folders['a']} lora:b={folders['b']}" in vllm
    assert "--max-lora-rank 64" in " ".join(arguments("vllm", folders, "--max-lora-rank", "64"))
    assert "--max-lora-rank 16" not in " ".join(arguments("vllm", folders, "--max-lora-rank", "64"))
    llamacpp = arguments("llamacpp", folders)
    assert llamacpp[llamacpp.index("--lora") + 1] == f"{folders['a']},{folders['b']}"
    for program in PROGRAMS:
        assert not [each for each in arguments(program, {}) if "lora" in each]


def test_names_of_files_cannot_become_arguments(tmp_path):
    """llama.cpp splits its argument at commas, and vLLM at the equals sign."""
    folder = tmp_path / "lr=1e-4,rank=8"
    folder.mkdir()
    hostile = folder / "a,b.gguf"
    hostile.write_bytes(b"model")
    (whole,) = link_adapters({"a": str(folder)}, False, tmp_path / "whole").values()
    (file,) = link_adapters({"a": str(folder)}, True, tmp_path / "files").values()
    assert Path(file).read_bytes() == b"model" and (Path(whole) / "a,b.gguf").exists()
    assert not {",", "="} & set((whole + file).removeprefix(str(tmp_path)))
    (folder / "c.gguf").touch()
    with pytest.raises(TemplateError, match="adapter a has 2 GGUF files"):
        link_adapters({"a": str(folder)}, True, tmp_path / "files")


CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "bias": "none"}


@pytest.mark.parametrize(
    "field",
    [
        {"peft_type": "PROMPT_TUNING"}, {"bias": "all"}, {"modules_to_save": ["lm_head"]},
        {"layer_replication": [[0, 4]]}, {"megatron_config": {"a": 1}}, {"alora_invocation_tokens": [1]},
        {"init_lora_weights": "pissa_niter_4"},
        {"trainable_token_indices": [1]}, {"target_parameters": ["w"]}, {"kasa_config": {"a": 1}},
        {"a_field_of_tomorrow": True},
    ],
)  # fmt: skip
def test_adapters_that_change_more_than_matrices_are_refused(field):
    assert lora.lora_fields(json.dumps(CONFIG).encode())["r"] == 8
    with pytest.raises(ValueError, match=next(iter(field)).replace("peft_type", "only LORA")):
        lora.lora_fields(json.dumps({**CONFIG, **field}).encode())


def test_only_fields_of_the_matrices_reach_peft():
    """peft would import megatron_core, for example."""
    config = {**CONFIG, "init_lora_weights": "gaussian", "megatron_core": "evil", "auto_mapping": {"a": "b"}}
    assert lora.lora_fields(json.dumps(config).encode()).keys() == {"r", "lora_alpha", "target_modules"}


def test_only_matrices_of_lora_are_accepted():
    lora.check_matrices(["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"])
    for name in ("base_model.model.lm_head.weight", "model.embed_tokens.weight", "x.lora_A.weight"):
        with pytest.raises(ValueError, match="no matrix of LoRA"):
            lora.check_matrices([name])
