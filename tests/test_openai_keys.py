"""The key of an openai service: where it is read from, and that it reaches nothing but the service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from glide.errors import TemplateError
from glide.server.engines.openai import KEYS, OpenAI
from glide.vocabulary import Machine, State
from tests import openai_service
from tests.openai_service import engine, errors, records, says
from tests.server_rig import failure

# These fixtures are shared by both modules about the openai engine.
service, serve = openai_service.service, openai_service.serve


KEY = "sk-0123456789abcdef"


@pytest.fixture
def keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Put a key where glideins' keys lie, and return its name."""
    monkeypatch.setenv("HOME", str(tmp_path))

    def keyed(key: str = KEY, mode: int = 0o600) -> str:
        path = KEYS.expanduser() / "key"
        path.parent.mkdir(parents=True)
        path.write_text(key + "\n")
        path.chmod(mode)
        return path.name

    return keyed


def test_refused_api_key_is_neither_retried_nor_logged(service, serve, keyed):
    service.key = "another"
    server = serve(is_entrys=True, key_file=keyed(), ready_seconds=600.0)
    words = failure(server)
    assert service.url in words and "401" in words and "Bearer [key]" in words and "~/.glide/keys/key" in words
    assert len(service.asked) == 1
    assert KEY not in server.log.read_text()


def test_api_key_reaches_only_the_service(service, serve, keyed):
    service.key = KEY
    service.troubles["says 1"] = [says(400, f"bad request with {KEY}")]
    server = serve(is_entrys=True, key_file=keyed())
    states = server.states()
    told = [next(states)]
    while told[-1][Machine.STATE] != State.WARM:
        told.append(next(states))
    results = server.call(records(3)).results()
    assert set(errors(results)) == {"r1"} and "[key]" in errors(results)["r1"]["message"]
    told += [server.now(), *results]
    assert KEY not in json.dumps(told)
    assert KEY not in server.log.read_text()
    for process in (server.process.pid, server.engine):
        for seen in ("cmdline", "environ"):
            assert KEY.encode() not in Path(f"/proc/{process}/{seen}").read_bytes()


@pytest.mark.parametrize(
    "key, mode, words",
    [(KEY, 0o640, "mode 640"), (KEY, 0o604, "mode 604"), ("", 0o600, "does not hold a key"),
     (f"{KEY}\n{KEY}", 0o600, "does not hold a key"), (f"{KEY}é", 0o600, "does not hold a key")],
)  # fmt: skip
def test_unprotected_or_invalid_key_file_is_refused(service, keyed, key, mode, words):
    with pytest.raises(TemplateError, match=words) as refused:
        engine(service, key_file=keyed(key, mode))
    assert KEY not in str(refused.value)
    assert service.asked == []


def test_missing_key_file_is_refused(service, keyed):
    with pytest.raises(TemplateError, match="nokey: No such file"):
        engine(service, key_file="nokey")


@pytest.mark.parametrize("name", ["/etc/passwd", "../tokens.d/glidein", "..", ".", "a/b", "~"])
def test_key_file_outside_keys_folder_is_refused(name):
    with pytest.raises(ValueError, match=r"name of a file in ~/\.glide/keys"):
        OpenAI.Options(url="http://h", key_file=name)


def test_key_file_named_by_sweep_is_refused(service, serve, keyed):
    assert "key_file is for the `service` of a site's entry" in failure(serve(key_file=keyed()))
    assert service.asked == []
