"""Gated models: the access point downloads them with a token, and only jobs of the token's owner get the files."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from glide.bench.origin import Origin, origin
from glide.condor import AccessPoint
from glide.errors import InputError
from glide.factory.home import file_set_key
from glide.factory.seed import Seed
from glide.files import Cache, Tree
from glide.files.peers import Peer, token
from glide.files.share import ChunkServer, SharedTree
from glide.job_ad import read_ad
from glide.sweep.models import prepare_model
from glide.system import files_below
from glide.template import FileSet, Template
from glide.template.function import template_of
from glide.template.private import MARKER, check_open, check_path
from glide.vocabulary import Exit, Job, State
from tests import file_trees
from tests.conftest import SweepFolder, eventually, factory_of
from tests.file_trees import Process, described
from tests.server_rig import Server
from tests.test_peers import answer
from tests.test_sticky import stick

model = file_trees.model  # a fixture
ME = f"{getpass.getuser()}@here"
KEY = "k" * 64
TOKEN = "hf_secret-of-this-test"
COMMIT = "c0ffee" + 34 * "0"


@pytest.fixture
def gated(model: Path) -> Iterator[Origin]:
    """A hub with one repository, which asks for a token."""
    with origin(model) as server:
        server.hub, server.token = ("glide/tiny", COMMIT, ("weights/one.bin",)), TOKEN
        yield server


@pytest.fixture
def seed(tmp_path: Path) -> Iterator[Seed]:
    seed = Seed(tmp_path / "seed", "127.0.0.1")
    yield seed
    seed.stop()


def private(folder: Path, owner: str = ME) -> Template:
    (folder / MARKER).touch()
    return replace(described(folder), private=True, user=owner)


# ---- whose it is ---------------------------------------------------------------------------------


def test_private_template_serves_only_its_owner(model):
    mine, theirs, public = private(model), private(model, "mallory@here"), described(model)
    assert mine.serves(ME) and not mine.serves("mallory@here") and public.serves("mallory@here")
    assert not replace(mine, user="").serves(ME) and not replace(mine, private=False).serves("mallory@here")
    assert len({mine.digest, theirs.digest, public.digest, replace(mine, private=False).digest}) == 4
    assert len({Tree.of(each.file_set).digest for each in (mine, theirs, public)}) == 3
    assert Template.from_json(mine.to_json()) == mine


def test_environment_cannot_claim_files_of_another_user(model):
    """With the names and digests of somebody else's files, which are in job ads."""
    files = private(model).file_set
    claimed = Template("mine", "noop", environment=files, user="mallory@here")
    with pytest.raises(ValueError, match="have no owner of their own"):
        Template.from_json(claimed.to_json())


def test_public_template_is_readable_by_an_older_glide(model):
    fields = json.loads(replace(described(model), environment=FileSet("/env")).to_json())
    assert "private" not in fields and "owner" not in fields["environment"]
    assert "owner" not in described(model).file_set.to_fields() and private(model).file_set.to_fields()["owner"] == ME


def test_user_is_named_only_in_templates_that_need_an_owner(model):
    assert private(model, "").for_user(lambda: ME).owner == ME
    assert described(model).for_user(lambda: pytest.fail("not needed")).owner == ""


def test_keys_of_private_files_differ_between_owners(model, tmp_path):
    sets = [private(model).file_set, private(model, "mallory@here").file_set, described(model).file_set]
    assert len({file_set_key(each, tmp_path) for each in sets}) == 3


# ---- who gets the files --------------------------------------------------------------------------


def test_file_below_a_marker_is_only_for_jobs_of_the_markers_account(model, tmp_path):
    (model / MARKER).touch()
    (tmp_path / "link").symlink_to(model / "weights")
    for path in (model / "config.json", model / "weights" / "one.bin", tmp_path / "link" / "one.bin"):
        check_path(path, ME)
        with path.open("rb") as file:
            check_open(file, ME)
            for other in ("", "mallory@here"):
                with pytest.raises(PermissionError, match=f"only jobs of {getpass.getuser()} may use this file"):
                    check_path(path, other)
                with pytest.raises(PermissionError, match="may use this file"):
                    check_open(file, other)


def test_file_behind_a_link_in_a_marked_folder_is_private_there(model, tmp_path):
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / MARKER).touch()
    (tmp_path / "snapshot" / "config.json").symlink_to(model / "config.json")
    with pytest.raises(PermissionError, match="may use this file"):
        check_path(tmp_path / "snapshot" / "config.json", "")
    (tmp_path / "s.yaml").write_text(
        "{name: s, records: r.jsonl, prompts: {p: x}, model: {name: m, engine: noop, path: snapshot}}"
    )
    with pytest.raises(InputError, match=r"model.path: .*config.json is a link to a file that is not private"):
        prepare_model(tmp_path / "s.yaml")


def test_marker_in_a_folder_of_everybody_counts_only_from_its_owner(model):
    (model / MARKER).touch()
    os.chown(model, 12345, -1)
    model.chmod(0o777)
    check_path(model / "config.json", "")
    model.chmod(0o755)
    with pytest.raises(PermissionError, match="may use this file"):
        check_path(model / "config.json", "")


def test_local_folder_with_a_marker_makes_a_private_template(model, tmp_path):
    (model / MARKER).touch()
    (tmp_path / "s.yaml").write_text(
        "{name: s, records: r.jsonl, prompts: {p: x}, model: {name: m, engine: noop, path: model}}"
    )
    assert prepare_model(tmp_path / "s.yaml").private
    assert template_of("call", len, (model / "config.json",), {}, ME).file_set.owner == ME


def test_another_users_template_cannot_copy_private_files(model, tmp_path):
    """Not even if a file is missing, so that the folder becomes the source of a fetch."""
    listed = {**described(model).files, "missing": ("f" * 64, 3)}
    cache = tmp_path / "cache"
    said = Process(cache, replace(described(private(model) and model), files=listed)).end()
    assert "only jobs of" in said["failed"]
    assert not any(each.stat().st_size for name in ("contents", "partial") for each in (cache / name).iterdir())


def test_another_users_template_cannot_name_private_files(model, tmp_path):
    template = private(model)
    assert Process(tmp_path / "cache", template).end()["folder"] == str(model)
    for other in (replace(template, private=False), replace(template, user="mallory@here")):
        said = Process(tmp_path / "cache", other).end()
        assert "only jobs of" in said["failed"]


def test_seed_sends_private_files_only_to_their_owners_jobs(model, tmp_path, seed):
    template = replace(private(model), key=KEY)
    elsewhere = tmp_path / "mallory"
    elsewhere.mkdir()
    for path in model.iterdir():
        (elsewhere / path.name).symlink_to(path)
    content = template.files["config.json"][0]
    for asked, gets in (
        (template, True), (replace(template, private=False, user=""), False),
        (replace(template, user="mallory@here"), False),
        (replace(template, path=str(elsewhere), user="mallory@elsewhere"), False),
    ):  # fmt: skip
        address, digest = seed.offer(asked.file_set), Tree.of(asked.file_set).digest
        if gets:
            data = Peer("seed", address).fetch_chunk(digest, content, 0, 300, KEY)
            assert data == (model / "config.json").read_bytes()
        else:
            with pytest.raises(OSError, match="403"):
                Peer("seed", address).fetch_chunk(digest, content, 0, 300, KEY)


def test_model_server_keeps_private_files_only_while_they_are_loaded(model, tmp_path, seed):
    template = replace(private(model), key=KEY)
    template = replace(template, path="/no/such/folder", seed=seed.offer(template.file_set))
    cache = tmp_path / "cache"
    server = Server(tmp_path / "server", template, lanes=2, cache=str(cache))
    try:
        server.reached(State.WARM)
        (kept,) = (tmp_path / "server" / "private" / "trees").glob("*/config.json")
        assert kept.read_bytes() == (model / "config.json").read_bytes()
        # Somebody else knows the names and digests, which are in job ads, but no address that has the files.
        other = replace(described(model), path=str(tmp_path / "nowhere"))
        assert "config.json" in Process(cache, other).end()["failed"] and not any((cache / "contents").iterdir())
        refused = stick(server, replace(template, user="mallory@here"), user="eve@here")
        assert refused[0] == Exit.INPUT and "contains private files of mallory@here" in refused[1]
        assert stick(server, Template("other", "noop"), user="eve@here")[0] == Exit.OK
        eventually(lambda: not (tmp_path / "server" / "private").exists(), "they are deleted")
    finally:
        server.stop()


def test_job_of_another_user_is_not_served(model, start):
    """START lets no such job in; but the lane may load another template while the job is on its way."""
    server = start(private(model))
    server.reached(State.WARM)
    assert server.call([{"custom_id": "a", "prompt": "x"}]).results()
    server.template = replace(server.template, user="mallory@here")  # whose jobs the client now pretends to be
    code, words = server.call([{"custom_id": "a", "prompt": "x"}]).end()
    assert code == Exit.SERVER_LOST and f"refused: only jobs of {ME} are served" in words


def test_names_in_job_ads_may_be_written_in_any_case(tmp_path):
    (tmp_path / "ad").write_text('glidetemplate = "T"\nUSER = "ada@here"\n')
    ad = read_ad(str(tmp_path / "ad"))
    assert (ad.get(Job.TEMPLATE), ad.get("User"), ad.get("Else", "no")) == ("T", "ada@here", "no")


def test_token_for_one_address_is_not_valid_at_another(model, tmp_path, seed):
    """As if a false peer passed on what it was asked."""
    template = replace(private(model), key=KEY)
    address, tree = seed.offer(template.file_set), Tree.of(template.file_set).digest
    path = f"/{tree}/have"
    for signed, status in ((f"{address}{path}", 200), (f"127.0.0.1:1{path}", 403), (path, 403)):
        assert answer(address, path, token(KEY, signed, time.time()))[0] == status


def test_file_that_takes_the_place_of_a_verified_one_is_not_sent(model, seed, tmp_path):
    template = replace(described(model), key=KEY)
    address, tree = seed.offer(template.file_set), Tree(template.files).digest
    content = template.files["config.json"][0]
    assert Peer("seed", address).fetch_chunk(tree, content, 0, 300, KEY)
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * 300)
    whole = ChunkServer._verified_digests

    async def swapped() -> None:
        server = ChunkServer(Cache(tmp_path / "cache"))
        server.offers[tree] = SharedTree(Tree(template.files), KEY, model)
        port = await server.start("127.0.0.1")
        peer = Peer("swapped", f"127.0.0.1:{port}")
        ask = asyncio.get_running_loop().run_in_executor
        assert await ask(None, peer.fetch_chunk, tree, content, 0, 300, KEY)

        def verified(self, offer, content):
            found = whole(self, offer, content)
            (model / "config.json").unlink(missing_ok=True)
            (model / "config.json").symlink_to(secret)  # between the check and the opening
            return found

        server._verified_digests = verified.__get__(server)  # type: ignore[method-assign]
        with pytest.raises(OSError, match="404"):
            await ask(None, peer.fetch_chunk, tree, content, 0, 300, KEY)
        server.stop()

    asyncio.run(swapped())


# ---- from the hub to the nodes -------------------------------------------------------------------


def with_token(sweep: SweepFolder, monkeypatch, gated: Origin, mode: int = 0o600) -> SweepFolder:
    token = sweep.folder / "token"
    token.write_text(f"{TOKEN}\n")
    token.chmod(mode)
    for name, value in (("HF_ENDPOINT", gated.url), ("HF_HOME", str(sweep.folder / "hub")),
                        ("HF_HUB_DISABLE_XET", "1"), ("XDG_CACHE_HOME", str(sweep.folder / "cache"))):  # fmt: skip
        monkeypatch.setenv(name, value)
    model = {"name": "gated", "engine": "noop", "path": "hf://glide/tiny", "token": "token"}
    return sweep.write([{"custom_id": "a", "text": "hello"}], model=model)


@pytest.mark.models
@pytest.mark.parametrize(
    ("mode", "change", "problem"),
    [
        (0o640, {}, r"sweep.yaml:\d+: model.token: other accounts can read .*token; run: chmod 600"),
        (0o600, {"token": "none"}, r"sweep.yaml:\d+: model.token: .*none: No such file"),
        (0o600, {"token": None}, r"sweep.yaml:\d+: model.path: hf://glide/tiny: .*401"),
        (0o600, {"path": "/tmp"}, r"`token` is only for a repository of the model hub"),
    ],
)  # fmt: skip
def test_wrong_token_file_is_refused_before_submission(sweep, monkeypatch, gated, mode, change, problem):
    with_token(sweep, monkeypatch, gated, mode)
    model = {"name": "gated", "engine": "noop", "path": "hf://glide/tiny", "token": "token", **change}
    sweep.write([{"custom_id": "a", "text": "hello"}], model=model)
    refused = sweep.run("status")
    assert refused.returncode == Exit.INPUT
    assert re.search(problem, refused.stderr), refused.stderr
    assert TOKEN not in refused.stderr


@pytest.mark.pool
@pytest.mark.models
def test_gated_model_is_fetched_once_and_its_token_stays_here(own_pool, factory_here, sweep, monkeypatch, gated):
    with_token(sweep, monkeypatch, gated)
    ran = sweep.run()
    assert ran.returncode == Exit.OK, ran.stderr
    assert [each["text"] for each in sweep.results()] == ["hello"]
    folder = sweep.folder / "cache" / "glide" / "models" / "glide--tiny" / COMMIT
    assert (folder / MARKER).exists() and folder.stat().st_mode & 0o777 == 0o700
    sent = dict(gated.sent)
    assert sent["weights/one.bin"] == (folder / "weights" / "one.bin").stat().st_size
    assert sweep.run("run", "--again").returncode == Exit.OK
    assert gated.sent["weights/one.bin"] == sent["weights/one.bin"]
    ads = [str(ad) for ad in AccessPoint().jobs("true", [])]
    seen = [path for root in (own_pool.home, sweep.out, sweep.folder / "cache") for path in files_below(root)]
    holders = [path for path in seen if os.access(path, os.R_OK) and TOKEN in _content(path)]
    assert ads and not holders and TOKEN not in "".join(ads)


def _content(path: Path) -> str:
    return path.read_bytes().decode("latin-1") if path.stat().st_size < 1 << 24 else ""


@pytest.fixture
def factory_here(own_pool) -> Iterator[Path]:
    with factory_of(own_pool) as log:
        yield log
