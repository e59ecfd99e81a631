"""A template describes sticky state so completely that equal digests mean equal states."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from glide.template import Parcel, Template


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


def test_a_folder_is_described_by_its_files_digests_and_sizes(folder):
    files = of(folder).files
    assert {name: size for name, (_, size) in files.items()} == {"config.json": 2, "deeper/weights.bin": 2560}
    assert files["config.json"][0] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_an_environment_makes_a_template_its_users_alone(folder):
    site, packed = of(folder), replace(of(folder), environment=Parcel("/env", {"env.tar.gz": ("0" * 64, 1)}))
    assert site.of(lambda: "ada@here") == site and site.owner == "" and not site.has_code
    hers, his = packed.of(lambda: "ada@here"), packed.of(lambda: "bob@here")
    assert (hers.owner, his.owner, hers.has_code) == ("ada@here", "bob@here", True)
    assert len({packed.digest, hers.digest, his.digest}) == 3
    assert Template.from_json(hers.to_json()) == hers


def test_the_digest_does_not_know_the_folders_place(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert of(tmp_path / "elsewhere").path != of(folder).path
    assert of(tmp_path / "elsewhere").digest == of(folder).digest


def test_hidden_files_do_not_count(folder):
    before = of(folder).digest
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x").write_text("x")
    (folder / ".hidden").write_text("x")
    assert of(folder).digest == before


def test_the_digest_changes_with_one_byte_of_the_same_size(folder):
    before = of(folder).digest
    content = bytearray((folder / "deeper" / "weights.bin").read_bytes())
    content[1000] ^= 1
    (folder / "deeper" / "weights.bin").write_bytes(content)
    assert of(folder).digest != before


def test_the_digest_changes_with_a_files_name(folder):
    before = of(folder).digest
    (folder / "config.json").rename(folder / "configuration.json")
    assert of(folder).digest != before


def test_the_digest_changes_with_another_file(folder):
    before = of(folder).digest
    (folder / "empty").touch()
    assert of(folder).digest != before


@pytest.mark.parametrize(
    "change",
    [{"engine": "transformers"}, {"model": "other"}, {"options": {"parallel": 3}}, {"options": {}}],
)
def test_the_digest_changes_with_engine_name_and_options(folder, change):
    assert replace(of(folder), **change).digest != of(folder).digest


def test_the_digest_does_not_depend_on_the_order_of_options():
    one, two = Template("m", "e", options={"a": 1, "b": 2}), Template("m", "e", options={"b": 2, "a": 1})
    assert one.digest == two.digest


def test_a_template_survives_json(folder):
    template = replace(of(folder), options={"nested": {"x": [1, None, "ö\u2028"]}, "f": 0.1})
    again = Template.from_json(template.to_json())
    assert again == template
    assert again.digest == template.digest
    assert len(template.to_json().splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"model": "m"}', '{"files": {}, "surprise": 1}'])
def test_what_is_no_template_is_refused(text):
    with pytest.raises((ValueError, KeyError, TypeError)):
        Template.from_json(text)


def test_a_link_to_nothing_is_a_file_that_cannot_be_read(folder):
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
def test_what_would_leave_its_folder_is_no_template(name, digest, size):
    with pytest.raises(ValueError):
        Template.from_json(Template("m", "noop", "/model", {name: (digest, size)}).to_json())


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"files": {"a": ["00", "big"]}, "model": "m", "engine": "noop"}', "7", ""]
)
def test_what_is_no_template_is_an_error_that_can_be_caught(text):
    with pytest.raises((ValueError, KeyError, TypeError, RecursionError)):
        Template.from_json(text)
