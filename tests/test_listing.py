"""Models at addresses: what files are there, by a hub's protocol or a list beside them, and how they are fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from glide.bench.origin import Origin, origin
from glide.files import Cache, Tree
from glide.files.fetch import Fetch
from glide.files.listing import MANIFEST, listing
from glide.files.sources import open_source
from glide.files.tree import CHUNK
from tests.file_trees import same, written

COMMIT = "c0ffee" + 34 * "0"
WEIGHTS = "model.safetensors"
SIZES = {"config.json": 40, WEIGHTS: 2 * CHUNK + 5}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return written(tmp_path / "model", SIZES)


@pytest.fixture
def hub(model: Path, tmp_path: Path):
    """A server that speaks the hub's protocol for one repository, `glide/tiny`."""
    with origin(model) as server:
        server.hub = "glide/tiny", COMMIT, (WEIGHTS,)
        yield server


def in_a_process(hub: Origin, home: Path, script: str) -> str:
    """The client reads where its hub is when it is imported."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    return done.stderr if done.returncode else done.stdout


def fetch(path: str, files: dict, cache: Path) -> Path:
    return Fetch(Cache(cache), Tree(files), open_source(path), None, lambda account: None).run()


@pytest.mark.models
def test_hub_repository_is_fetched_at_fixed_commit(hub, model, tmp_path):
    (model / "README.md").write_text("what people read")
    (model / "pytorch_model.bin").write_text("the same weights")
    script = (
        "from glide.files.listing import listing; import json\n"
        "from tests.test_listing import fetch; from pathlib import Path\n"
        f"path, files = listing('hf://glide/tiny'); print(json.dumps([path, sorted(files)]))\n"
        f"print(fetch(path, files, Path({str(tmp_path / 'cache')!r})))"
    )
    first, second = in_a_process(hub, tmp_path / "home", script).splitlines()
    assert json.loads(first) == [f"hf://glide/tiny@{COMMIT}", sorted(SIZES)]
    (model / "README.md").unlink(), (model / "pytorch_model.bin").unlink()
    assert same(Path(second), model)
    ranges = [asked for name, asked in hub.requests if name.endswith(WEIGHTS) and asked]
    assert len(ranges) > 1 and all(asked.startswith("bytes=") for asked in ranges)


@pytest.mark.models
def test_broken_hub_download_is_resumed(hub, model, tmp_path):
    script = (
        "from glide.files.listing import listing\nfrom tests.test_listing import fetch; from pathlib import Path\n"
        f"print(fetch(*listing('hf://glide/tiny@main'), Path({str(tmp_path / 'cache')!r})))"
    )
    hub.cut, hub.cuts = CHUNK // 2, 2
    assert same(Path(in_a_process(hub, tmp_path / "home", script).splitlines()[-1]), model)


@pytest.mark.parametrize("name", ["nobody/nothing", "tiny"])
def test_missing_hub_repository_is_reported_with_address(hub, tmp_path, name):
    said = in_a_process(hub, tmp_path / "home", f"from glide.files.listing import listing; listing('hf://{name}')")
    assert f"hf://{name}: " in said.splitlines()[-1]


def test_model_folder_at_url_needs_list_of_files(model):
    with origin(model) as server:
        with pytest.raises(OSError, match=f"404.*glide template files FOLDER > FOLDER/{MANIFEST}"):
            listing(server.url)
        words = [sys.executable, "-m", "glide", "template", "files", str(model)]
        (model / MANIFEST).write_text(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        path, files = listing(f"{server.url}/")
        assert path == server.url and {name: size for name, (_, size) in files.items()} == SIZES


@pytest.mark.parametrize(
    "files",
    [
        {"../../etc/passwd": ["0" * 64, 1]}, {"/etc/passwd": ["0" * 64, 1]}, {"a": ["zz", 1]}, {"a": ["0" * 64, -1]},
        {"a": 1}, [],
    ],
)  # fmt: skip
def test_invalid_list_of_files_is_refused(model, files):
    (model / MANIFEST).write_text(json.dumps(files))
    with origin(model) as server, pytest.raises(ValueError, match=MANIFEST):
        listing(server.url)


def test_htcondor_transfer_plugin_fetches_urls_it_supports(model, tmp_path):
    """A plugin of HTCondor's protocol, for a scheme that this machine's own programs do not know."""
    from glide.files.sources import PluginSource

    plugins = tmp_path / "libexec"
    plugins.mkdir()
    program = plugins / "fake_plugin"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = -classad ]; then\n'
        "    echo 'PluginType = \"FileTransfer\"'; echo 'SupportedMethods = \"stash,osdf\"'; exit 0\n"
        "fi\n"
        'url=$(sed -n \'s/.*Url = "\\([^"]*\\)".*/\\1/p\' "$2")\n'
        'target=$(sed -n \'s/.*LocalFileName = "\\([^"]*\\)".*/\\1/p\' "$2")\n'
        f'cp "{model}/${{url##*/}}" "$target" || {{ echo "[ TransferError = \\"none such\\" ]" >"$4"; exit 1; }}\n'
    )
    program.chmod(0o700)
    source = PluginSource("osdf:///models/tiny", plugins)
    assert b"".join(source.read(WEIGHTS, 0)) == (model / WEIGHTS).read_bytes()
    assert b"".join(source.read(WEIGHTS, CHUNK)) == (model / WEIGHTS).read_bytes()[CHUNK:]
    with pytest.raises(OSError, match=r"osdf:///models/tiny/other: fake_plugin: .*none such"):
        list(source.read("other", 0))
    with pytest.raises(FileNotFoundError, match=r"no file transfer plugin .* supports osdf://"):
        PluginSource("osdf:///x", tmp_path)


@pytest.mark.models
def test_hub_dataset_becomes_records_of_its_split(tmp_path):
    import pyarrow
    from pyarrow import parquet

    for split, config, shard in (("train", "default", 0), ("train", "default", 1), ("test", "default", 0)):
        path = tmp_path / "dataset" / config / split / f"{shard:04}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table({"id": [shard], "text": [f"{split} {shard}"]}), path)
    script = (
        "from glide.sweep import formats, reading; from glide.sweep.records import RecordFormat\n"
        "from pathlib import Path\n"
        "files = formats.files_of(Path('/'), 'hf://datasets/glide/claims:train')\n"
        "records = reading.read(Path('x'), files, RecordFormat('id'))\n"
        "print([record.fields['text'] for record in records])"
    )
    with origin(tmp_path / "dataset") as server:
        server.hub = "glide/claims", COMMIT, ()
        assert in_a_process(server, tmp_path / "home", script).splitlines()[-1] == "['train 0', 'train 1']"
        missing = in_a_process(server, tmp_path / "home", script.replace(":train", ":dev"))
        assert "hf://datasets/glide/claims:dev: the dataset has no files for this split" in missing
        malformed = in_a_process(server, tmp_path / "home", script.replace("claims:train", "claims"))
        assert "write hf://datasets/ORG/NAME:SPLIT" in malformed
