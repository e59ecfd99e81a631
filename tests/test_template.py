"""A template describes sticky state so completely that equal digests mean equal states."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from glide.template import FileSet, Template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files, one of them deeper."""
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deeper" / "weights.bin").write_bytes(bytes(range(256)) * 10)
    return folder


def of(folder: Path) -> Template:
    return Template.of_folder("m", "noop", folder, {"parallel": 2})


def test_template_lists_digest_and_size_of_each_file(folder):
    files = of(folder).files
    assert {name: size for name, (_, size) in files.items()} == {"config.json": 2, "deeper/weights.bin": 2560}
    assert files["config.json"][0] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_environment_makes_template_digest_depend_on_user(folder):
    site, packed = of(folder), replace(of(folder), environment=FileSet("/env", {"env.tar.gz": ("0" * 64, 1)}))
    assert site.for_user(lambda: "ada@here") == site and site.owner == "" and not site.has_code
    hers, his = packed.for_user(lambda: "ada@here"), packed.for_user(lambda: "bob@here")
    assert (hers.owner, his.owner, hers.has_code) == ("ada@here", "bob@here", True)
    assert len({packed.digest, hers.digest, his.digest}) == 3
    assert Template.from_json(hers.to_json()) == hers


def test_template_digest_is_independent_of_folder_path(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere").path != of(folder).path
    assert of(tmp_path / "elsewhere").digest == of(folder).digest


def test_hidden_files_do_not_affect_template_digest(folder):
    before = of(folder).digest
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    (folder / ".hidden").write_text("x")
    assert of(folder).digest == before


def test_template_digest_changes_with_one_byte(folder):
    before = of(folder).digest
    content = bytearray((folder / "deeper" / "weights.bin").read_bytes())
    content[1000] ^= 1
    (folder / "deeper" / "weights.bin").write_bytes(content)
    assert of(folder).digest != before


def test_template_digest_changes_with_file_name(folder):
    before = of(folder).digest
    (folder / "config.json").rename(folder / "configuration.json")
    assert of(folder).digest != before


def test_template_digest_changes_with_additional_file(folder):
    before = of(folder).digest
    (folder / "empty").touch()
    assert of(folder).digest != before


@pytest.mark.parametrize(
    "change",
    [{"engine": "transformers"}, {"model": "other"}, {"options": {"parallel": 3}}, {"options": {}}],
)
def test_template_digest_changes_with_engine_model_and_options(folder, change):
    assert replace(of(folder), **change).digest != of(folder).digest


def test_template_digest_is_independent_of_option_order():
    one, two = Template("m", "e", options={"a": 1, "b": 2}), Template("m", "e", options={"b": 2, "a": 1})
    assert one.digest == two.digest


def test_template_survives_json_round_trip(folder):
    template = replace(of(folder), options={"nested": {"x": [1, None, "ö\u2028"]}, "f": 0.1})
    again = Template.from_json(template.to_json())
    assert again == template
    assert again.digest == template.digest
    assert len(template.to_json().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"model": "m"}', '{"files": {}, "surprise": 1}'])
def test_invalid_template_json_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Template.from_json(text)


def test_broken_link_in_model_folder_raises_error(folder):
    (folder / "model.safetensors").symlink_to(folder / "blobs" / "gone")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        of(folder)


@pytest.mark.parametrize(
    ("name", "digest", "size"),
    [
        ("../escaped", "0" * 64, 1), ("a/../../escaped", "0" * 64, 1), ("/etc/cron.d/job", "0" * 64, 1),
        ("", "0" * 64, 1), ("a\0b", "0" * 64, 1), ("a", "../../contents", 1), ("a", "0" * 63, 1), ("a", "0" * 64, -1),
    ],
)  # fmt: skip
def test_template_with_unsafe_file_description_is_refused(name, digest, size):
    with pytest.raises(ValueError):
        Template.from_json(Template("m", "noop", "/model", {name: (digest, size)}).to_json())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": {"a": ["00", "big"]}, "model": "m", "engine": "noop"}', "7", ""]
)
def test_malformed_template_json_raises_value_or_type_error(text):
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError)):
        Template.from_json(text)
