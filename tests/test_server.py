"""The model server and its client: real processes on a real socket, some of them killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glide.server.advertise import watch
from glide.template import Template
from glide.vocabulary import ID_VARIABLE, SOCKET_VARIABLE, Exit, Job, Machine, State
from tests.conftest import eventually
from tests.models import tiny_llama

HEALTHY = [State.BLANK, State.FETCHING, State.LOADING, State.WARMING, State.WARM]


class Call:
    """A client's process with its records, and what it has written."""

    def __init__(self, server: Server, records: list[dict[str, Any]], template: str | None):
        place = server.folder / f"call-{len(server.calls)}"
        self.out = place.with_suffix(".out")
        place.with_suffix(".in").write_text("".join(json.dumps(record) + "\n" for record in records))
        environment = {**os.environ, SOCKET_VARIABLE: str(server.socket), ID_VARIABLE: "here-1.0"}
        if template is not None:
            place.with_suffix(".ad").write_text(f'{Job.TEMPLATE} = "{template}"\nNumJobStarts = 2\n')
            environment["_CONDOR_JOB_AD"] = str(place.with_suffix(".ad"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "glide.invoke.client", str(place.with_suffix(".in")), str(self.out)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        server.calls.append(self)

    def end(self) -> tuple[int, str]:
        """The exit code and the last words; a client that hangs fails the test."""
        try:
            _, words = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            raise AssertionError("the client hangs") from None
        return self.process.returncode, words

    def results(self) -> list[dict[str, Any]]:
        """What a client that has ended well leaves."""
        code, words = self.end()
        assert code == Exit.OK, words
        return self.written()

    def written(self) -> list[dict[str, Any]]:
        content = self.out.read_text()
        assert content == "" or content.endswith("\n"), f"a torn line: {content[-80:]!r}"
        return [json.loads(line) for line in content.split("\n") if line]


class Server:
    """A model server's process for one template, as a glidein starts it."""

    def __init__(self, folder: Path, template: Template):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.template = template
        self.socket = folder / "model.sock"
        self.log = folder / "server.log"
        self.calls: list[Call] = []
        (folder / "template.json").write_text(template.to_json())
        arguments = [folder / "template.json", self.socket, self.log]
        self.process = subprocess.Popen([sys.executable, "-m", "glide.server", *map(str, arguments)])

    def states(self) -> Iterator[dict[str, Any]]:
        """What it advertises, from the moment there is something to connect to."""
        eventually(lambda: self.socket.exists() or self.process.poll() is not None, "the server's socket")
        return watch(self.socket)

    def now(self) -> dict[str, Any]:
        return next(self.states())

    def reached(self, state: str) -> dict[str, Any]:
        """Wait for a state; the other end of the road fails the test."""
        for attributes in self.states():
            if attributes[Machine.STATE] == state:
                return attributes
            assert attributes[Machine.STATE] != State.FAILED, attributes
        raise AssertionError(f"the server ended: {self.log.read_text()}")

    def call(self, records: list[dict[str, Any]], template: str | None = None) -> Call:
        return Call(self, records, template)

    def busy(self) -> None:
        """Wait until it has served something."""
        eventually(lambda: self.now()[Machine.SERVED] > 0, "a record is served")

    @property
    def engine(self) -> int:
        """The engine's process: the server's only child."""
        (child,) = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(child)

    def stop(self) -> None:
        for process in (self.process, *(call.process for call in self.calls)):
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stderr is not None:
                process.stderr.close()


@pytest.fixture
def start(tmp_path: Path):
    """Start servers that do not outlive the test."""
    servers: list[Server] = []

    def start(template: Template | None = None, **options: Any) -> Server:
        servers.append(Server(tmp_path / f"{len(servers)}", template or Template("fake", "noop", options=options)))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def records(count: int, prefix: str = "r") -> list[dict[str, Any]]:
    return [{"custom_id": f"{prefix}{n}", "prompt": f"{prefix} says {n}"} for n in range(count)]


def assert_exactly_once(results: list[dict[str, Any]], sent: list[dict[str, Any]]) -> None:
    times = Counter(result["custom_id"] for result in results)
    assert set(times) == {record["custom_id"] for record in sent}
    assert set(times.values()) <= {1}


def echoes(results: list[dict[str, Any]]) -> dict[str, str]:
    assert [result for result in results if result["error"] is not None] == []
    return {result["custom_id"]: result["text"] for result in results}


# ---- serving -------------------------------------------------------------------------------------


def test_clients_at_once_get_exactly_their_own_results(start):
    server = start(record_seconds=0.001, parallel=8)
    server.reached(State.WARM)
    sent = [[{"custom_id": f"r{n}", "prompt": f"{client}:{n}"} for n in range(150)] for client in range(6)]
    for call, mine in zip([server.call(mine) for mine in sent], sent, strict=True):
        results = call.results()
        assert_exactly_once(results, mine)
        assert echoes(results) == {record["custom_id"]: record["prompt"] for record in mine}


def test_twenty_thousand_records_come_back_from_one_call(start):
    server = start()
    sent = records(20_000)
    server.reached(State.WARM)
    results = server.call(sent).results()
    assert_exactly_once(results, sent)
    assert echoes(results) == {record["custom_id"]: record["prompt"] for record in sent}
    eventually(lambda: server.now()[Machine.SERVED] == 20_000, "all are counted")


def test_a_client_that_comes_before_the_model_waits_for_it(start):
    server = start(load_seconds=0.5)
    server.states()
    assert echoes(server.call(records(3)).results()) == {f"r{n}": f"r says {n}" for n in range(3)}


def test_odd_texts_come_back_as_they_went(start):
    texts = ["", "\n", "\r\n", "{x} {{", "🦉", "שלום", "\u2028\x85\x0b", "\x00", '"\\', "x" * 300_000]
    server = start()
    server.reached(State.WARM)
    results = server.call([{"custom_id": str(n), "prompt": text} for n, text in enumerate(texts)]).results()
    assert [echoes(results)[str(n)] for n in range(len(texts))] == texts


def test_a_record_without_company_and_a_call_without_records_are_served(start):
    server = start()
    server.reached(State.WARM)
    assert server.call([]).results() == []
    (result,) = server.call(records(1)).results()
    assert result["glidein"] == "here-1.0" and result["attempts"] == 1 and result["seconds"] >= 0


def test_a_socket_may_lie_deeper_than_its_address_may_be_long(tmp_path):
    server = Server(tmp_path / ("deep" * 20) / ("deeper" * 20), Template("fake", "noop"))
    try:
        assert len(str(server.socket)) > 108
        server.reached(State.WARM)
        assert len(server.call(records(5)).results()) == 5
    finally:
        server.stop()


def test_a_job_of_another_template_is_refused_and_one_of_this_template_is_not(start):
    server = start()
    server.reached(State.WARM)
    code, words = server.call(records(3), template="0" * 64).end()
    assert code == Exit.SERVER_LOST and "refused" in words and server.template.digest in words
    assert server.calls[-1].written() == []
    results = server.call(records(3), template=server.template.digest).results()
    assert {result["attempts"] for result in results} == {3}


def test_a_client_without_a_server_says_so(tmp_path, start):
    server = start()
    server.reached(State.WARM)
    server.process.kill()
    server.process.wait()
    code, words = server.call(records(1)).end()
    assert code == Exit.SERVER_LOST and "no model server" in words


def test_a_record_without_prompt_ends_its_call_and_no_other(start):
    server = start(record_seconds=0.002)
    server.reached(State.WARM)
    good = server.call(records(100))
    code, words = server.call([*records(3), {"custom_id": "bad"}]).end()
    assert code != Exit.OK and words
    assert len(good.results()) == 100


def test_what_a_killed_client_left_is_not_computed(start):
    server = start(record_seconds=0.002)
    server.reached(State.WARM)
    call = server.call(records(1500))
    server.busy()
    call.process.kill()
    call.process.wait()
    # The one that comes after it gets the engine to itself: were the 1500 still worked on, they would get half.
    server.call(records(1200, "after")).results()
    served = eventually(lambda: (now := server.now()[Machine.SERVED]) >= 1200 and now, "the count arrives")
    assert served < 1200 + 1000


# ---- states --------------------------------------------------------------------------------------


def test_a_server_passes_through_the_states_in_order_and_says_how_long(start):
    server = start(load_seconds=0.4)
    seen = []
    for attributes in server.states():
        seen.append(attributes[Machine.STATE])
        if seen[-1] == State.WARM:
            break
    assert seen[-2:] == [State.LOADING, State.WARM]
    assert [HEALTHY.index(state) for state in seen] == sorted(map(HEALTHY.index, seen))
    assert attributes[Machine.TEMPLATE] == server.template.digest
    assert attributes[Machine.MODEL] == "fake"
    assert attributes[Machine.LOAD_SECONDS] >= 0.4


def test_the_pace_is_measured(start):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    server.call(records(60)).results()
    now = eventually(lambda: (ad := server.now())[Machine.SERVED] == 60 and ad, "all are counted")
    assert now[Machine.RECORD_SECONDS] > 0.005
    assert now[Machine.BUSY_SECONDS] > 60 * 0.005


def failure(server: Server) -> str:
    """Why a server that must not become warm has failed."""
    for attributes in server.states():
        assert attributes[Machine.STATE] != State.WARM
        if attributes[Machine.STATE] == State.FAILED:
            return attributes[Machine.FAILURE]
    raise AssertionError(f"the server ended: {server.log.read_text()}")


def test_a_missing_file_is_the_reason_of_a_failure(start, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights.bin").write_bytes(b"x" * 100)
    template = Template.of_folder("m", "noop", folder, {})
    (folder / "weights.bin").unlink()
    assert f"{folder}/weights.bin is missing" in failure(start(template))


@pytest.mark.parametrize(
    "template, reason",
    [
        (Template("m", "noop", options={"speed": 3}), "speed"),
        (Template("m", "nope"), "no engine 'nope'"),
        (Template("m", "noop", options={"load_seconds": "long"}), "TypeError"),
    ],
)
def test_a_template_that_makes_no_sense_is_the_reason_of_a_failure(start, template, reason):
    assert reason in failure(start(template))


def test_a_client_of_a_server_that_has_failed_is_sent_away(start):
    server = start(Template("m", "nope"))
    server.states()
    before = server.call(records(1))
    failure(server)
    for call in (before, server.call(records(1))):
        assert call.end()[0] == Exit.SERVER_LOST
        assert call.written() == []


# ---- deaths --------------------------------------------------------------------------------------


def test_no_client_notices_that_the_engine_was_killed(start):
    server = start(record_seconds=0.02, parallel=8)
    server.reached(State.WARM)
    sent = [records(200, f"c{client}-") for client in range(3)]
    calls = [server.call(mine) for mine in sent]
    server.busy()
    first = server.engine
    os.kill(first, signal.SIGKILL)
    for call, mine in zip(calls, sent, strict=True):
        results = call.results()
        assert_exactly_once(results, mine)
        assert echoes(results) == {record["custom_id"]: record["prompt"] for record in mine}
    assert server.engine != first
    assert server.now()[Machine.STATE] == State.WARM
    assert "SIGKILL" in server.log.read_text()


def test_a_record_that_is_alone_in_a_killed_engine_has_at_worst_a_typed_error(start):
    server = start(record_seconds=0.01, parallel=1)
    server.reached(State.WARM)
    sent = records(150)
    call = server.call(sent)
    server.busy()
    os.kill(server.engine, signal.SIGKILL)
    results = call.results()
    assert_exactly_once(results, sent)
    errors = [result["error"]["type"] for result in results if result["error"] is not None]
    assert errors in ([], ["EngineDied"])


def test_an_engine_killed_again_and_again_still_loses_nothing(start):
    server = start(record_seconds=0.02, parallel=8)
    server.reached(State.WARM)
    sent = records(240)
    call = server.call(sent)
    server.busy()
    for _ in range(3):
        engine, served = server.engine, server.now()[Machine.SERVED]
        os.kill(engine, signal.SIGKILL)
        eventually(lambda served=served: server.now()[Machine.SERVED] > served, "it serves again")
    results = call.results()
    assert_exactly_once(results, sent)
    assert echoes(results) == {record["custom_id"]: record["prompt"] for record in sent}


def test_a_client_whose_server_is_killed_keeps_whole_lines_and_asks_to_be_run_again(start):
    server = start(record_seconds=0.01, parallel=4)
    server.reached(State.WARM)
    sent = records(2000)
    calls = [server.call(sent) for _ in range(2)]
    server.busy()
    server.process.kill()
    for call in calls:
        code, words = call.end()
        assert code == Exit.SERVER_LOST and "went away" in words
        ids = [result["custom_id"] for result in call.written()]
        assert len(ids) == len(set(ids)) < len(sent)
        assert set(ids) <= {record["custom_id"] for record in sent}


def test_a_line_that_the_servers_death_tore_is_no_result(start, monkeypatch):
    server = start()
    server.reached(State.WARM)
    server.process.kill()
    server.process.wait()
    server.socket.unlink()
    # We take the server's place, to die at a place of our choice: within the second line.
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(server.folder)  # its whole path may be too long for an address
    listener.bind(server.socket.name)
    listener.listen()
    call = server.call(records(3))
    connection, _ = listener.accept()
    with listener, connection, connection.makefile("r") as sent:
        assert len([sent.readline() for _ in range(5)]) == 5  # the greeting, the records, the end
        result = {"custom_id": "r0", "text": "yes", "tokens": 0, "error": None, "seconds": 0.0}
        line = json.dumps(result) + "\n"
        connection.sendall((line + line.replace("r0", "r1")[:40]).encode())
    code, words = call.end()
    assert [result["custom_id"] for result in call.written()] == ["r0"]
    assert code == Exit.SERVER_LOST, words


def test_a_server_asked_to_end_leaves_nothing_behind(start):
    server = start(record_seconds=0.01)
    server.reached(State.WARM)
    watching = server.states()
    next(watching)
    call = server.call(records(1000))
    server.busy()
    engine = server.engine
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert call.end()[0] == Exit.SERVER_LOST
    assert not server.socket.exists()
    assert not Path(f"/proc/{engine}").exists()
    assert "Traceback" not in server.log.read_text()
    assert all(attributes[Machine.STATE] == State.WARM for attributes in watching)  # and then it ends


# ---- a real model --------------------------------------------------------------------------------

ODD = [
    "", " ", "Verdict:", "The claim is: the river flows north.", "🦉🦉 and 👩‍👩‍👧‍👦", "שלום עולם", "مرحبا بالعالم",
    "{claim} {{x}} }{", "two\nlines\n\n", "\ttab\r\n", "null\x00byte", "\u2028", "Verdict:", "Verdict:", "<s></s>",
    "é" * 90,
]  # fmt: skip
GENERATE = {"max_new_tokens": 24, "do_sample": False}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def plain(llama: Path):
    """What plain transformers makes of a prompt: (text, how many tokens)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    model = AutoModelForCausalLM.from_pretrained(llama).eval()

    def plain(prompt: str, **generate: Any) -> tuple[str, int]:
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**encoded, **generate)[0, encoded["input_ids"].shape[1] :]
        return tokenizer.decode(output, skip_special_tokens=True), len(output)

    return plain


@pytest.fixture(scope="module")
def warm(llama: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server that holds the model and calls it with up to six records, so that most are padded."""
    template = Template.of_folder("llama", "transformers", llama, {"dtype": "float32", "batch": 6, "device": "cpu"})
    server = Server(tmp_path_factory.mktemp("server"), template)
    server.reached(State.WARM)
    yield server
    server.stop()


def ask(server: Server, prompts: list[str], **generate: Any) -> list[dict[str, Any]]:
    """The results for prompts, in their order."""
    sent = [{"custom_id": str(n), "prompt": prompt} for n, prompt in enumerate(prompts)]
    results = server.call([{"generate": generate}, *sent]).results()
    assert_exactly_once(results, sent)
    return sorted(results, key=lambda result: int(result["custom_id"]))


def test_greedy_texts_are_plain_transformers_texts(warm, plain):
    results = ask(warm, ODD, **GENERATE)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, **GENERATE) for text in ODD]


def test_the_tiny_model_says_different_things_and_sometimes_stops_by_itself(plain):
    said = [plain(text, **GENERATE) for text in ODD]
    assert len({text for text, _ in said}) > len(set(ODD)) / 2
    assert {tokens for _, tokens in said} > {24}


def test_without_options_texts_are_plain_transformers_texts_too(warm, plain):
    results = ask(warm, ODD)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, do_sample=False) for text in ODD]


def test_a_prompt_too_long_for_the_model_has_an_error_and_its_neighbours_have_texts(warm, plain):
    prompts = ["before", "x" * 2000, "Verdict:", "y " * 1000, "after"]
    results = ask(warm, prompts, **GENERATE)
    assert [result["error"] and result["error"]["type"] for result in results] == [
        None, "PromptTooLong", None, "PromptTooLong", None,
    ]  # fmt: skip
    assert "512" in results[1]["error"]["message"]
    assert results[1]["text"] is None and results[1]["tokens"] == 0
    for n in (0, 2, 4):
        assert results[n]["text"] == plain(prompts[n], **GENERATE)[0]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 1},
        {"max_new_tokens": 12, "min_new_tokens": 12},
        {"max_new_tokens": 12, "repetition_penalty": 1.8},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 2},
        {"max_new_tokens": 12, "no_repeat_ngram_size": 1, "sequence_bias": [[[1], 4.0]]},
        {"max_new_tokens": 12, "suppress_tokens": [54, 49]},
        {"max_new_tokens": 12, "eos_token_id": 54},
        {"max_new_tokens": 12, "num_beams": 3},
        {"max_new_tokens": 12, "do_sample": True, "top_k": 1},
        {"max_length": 40},
    ],
    ids=lambda options: " ".join(name for name in options if name != "max_new_tokens") or "max_new_tokens",
)
def test_options_mean_what_they_mean_to_plain_transformers(warm, plain, options):
    prompts = ["Verdict:", "hello", "The claim is: the river flows north.", "", "x x x x x x"]
    options = {"do_sample": False, **options}
    results = ask(warm, prompts, **options)
    assert [result["error"] for result in results] == [None] * len(prompts)
    assert [(result["text"], result["tokens"]) for result in results] == [plain(text, **options) for text in prompts]


def test_sampling_samples(warm):
    texts = [result["text"] for result in ask(warm, ["hello"] * 12, max_new_tokens=12, do_sample=True, temperature=5.0)]
    assert len(set(texts)) > 1


def test_records_with_different_options_are_not_mixed_in_one_call(warm):
    lengths = [1, 5, 2, 5, 1, 9, 3]
    sent = [
        {"custom_id": str(n), "prompt": "hello", "generate": {"max_new_tokens": length, "min_new_tokens": length}}
        for n, length in enumerate(lengths)
    ]
    results = warm.call(sent).results()
    assert {result["custom_id"]: result["tokens"] for result in results} == {
        str(n): length for n, length in enumerate(lengths)
    }


@pytest.mark.parametrize(
    "options",
    [{"surprise": 1}, {"max_new_tokens": "many"}, {"max_new_tokens": -1}, {"num_return_sequences": 2, "num_beams": 2}],
    ids=lambda options: next(iter(options)) + "=" + str(next(iter(options.values()))),
)
def test_options_that_make_no_sense_are_each_records_error_and_the_model_stays(warm, options):
    before = warm.engine
    results = ask(warm, ["one", "two", "three"], **options)
    errors = [result["error"] and result["error"]["type"] for result in results]
    assert None not in errors and "EngineDied" not in errors
    assert warm.engine == before
    assert ask(warm, ["Verdict:"], max_new_tokens=2)[0]["error"] is None


def test_weights_that_are_torn_are_the_reason_of_a_failure(start, llama, tmp_path):
    folder = tmp_path / "torn"
    shutil.copytree(llama, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    server = start(Template.of_folder("llama", "transformers", folder, {"device": "cpu"}))
    assert "afetensor" in failure(server)


def test_a_dtype_that_does_not_exist_is_the_reason_of_a_failure(start, llama):
    server = start(Template.of_folder("llama", "transformers", llama, {"device": "cpu", "dtype": "float33"}))
    assert "float33" in failure(server)
