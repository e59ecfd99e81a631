"""`client.py FOLDER NUMBER`: send requests to a service, one after the other, and measure them.

The prompts of all clients are in FOLDER/requests.json. All clients begin as soon as the file FOLDER/go exists.

A client is a job on a lane, and sends its requests to the lane's model server. A request has one record, but an
invocation job has many (glide/server/ticket.py). For each request, the client writes the record into a file and
connects to the server, and the server writes the result into a second file. If the environment has OPENAI_BASE_URL, the
client is an ordinary process instead, and sends its requests to `glide serve`, over one connection.

For each request, the client writes three durations in seconds into `client-NUMBER.json`. The first is the total. The
second is the time in the server. The third is the time in the engine. Where a model server answers, the time in the
server is from the sending of the request to the server's last line. Both use the same clock, because they are on the
same host. Where `glide serve` answers, it names the times in the head of its answer.

This program needs only the standard library, like everything that runs on a lane.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

REQUEST, RESULT = Path("request.jsonl"), Path("result.jsonl")
Durations = tuple[float, float, float]


def main(folder: Path, number: int) -> None:
    asked = json.loads((folder / "requests.json").read_text("utf-8"))
    requests = [{**asked["defaults"], "custom_id": f"{number}-{at}", "prompt": prompt}
                for at, prompt in enumerate(asked["prompts"][number])]  # fmt: skip
    (folder / f"ready-{number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    # Connect only now, because `glide serve` closes a connection without requests after a while.
    ask = connected(os.environ) if "OPENAI_BASE_URL" in os.environ else lane(os.environ)
    began = time.time()
    took = [ask(request) for request in requests]
    Path(f"client-{number}.json").write_text(json.dumps({"began": began, "ended": time.time(), "took": took}), "utf-8")


def lane(environment: Mapping[str, str]) -> Callable[[dict[str, Any]], Durations]:
    """Return a function that sends a request to the model server of this job's lane."""
    port, cookie = Path(environment["GLIDE_SOCKET"]).read_text("utf-8").split()
    ticket = (cookie, str(Path.cwd()), str(REQUEST), str(RESULT), environment["_CONDOR_JOB_AD"], "", "")

    def ask(request: dict[str, Any]) -> Durations:
        began = time.monotonic()
        REQUEST.write_text(json.dumps(request) + "\n", "utf-8")
        with socket.create_connection(("127.0.0.1", int(port))) as connection, connection.makefile() as answer:
            sent = time.monotonic()  # before sending, because the server can answer before this process runs again
            connection.sendall("".join(f"{line}\n" for line in ticket).encode())
            *lines, end = answer
        result = json.loads(RESULT.read_text("utf-8"))
        whole = time.monotonic() - began
        if end != "exit 0\n" or result["error"]:
            sys.exit(f"request {request['custom_id']} failed: {lines} {end} {result['error']}")
        left = float(lines[-1].split()[4])  # the server's last line is "served from … to … s"
        return whole, left - sent, result["seconds"]

    return ask


def connected(environment: Mapping[str, str]) -> Callable[[dict[str, Any]], Durations]:
    """Return a function that sends a request to `glide serve`."""
    url = urlsplit(environment["OPENAI_BASE_URL"])
    assert url.hostname is not None
    connection = http.client.HTTPConnection(url.hostname, url.port)
    connection.connect()
    headers = {"Authorization": f"Bearer {environment['OPENAI_API_KEY']}", "Content-Type": "application/json"}

    def ask(request: dict[str, Any]) -> Durations:
        body = {name: value for name, value in request.items() if name != "custom_id"}
        began = time.monotonic()
        connection.request("POST", f"{url.path}/completions", json.dumps(body), headers)
        response = connection.getresponse()
        content = response.read()
        whole = time.monotonic() - began
        if response.status != 200:
            sys.exit(f"request {request['custom_id']} failed: {response.status} {content.decode()}")
        times = dict(re.findall(r"(\w+);dur=([\d.]+)", response.headers["Server-Timing"]))  # in milliseconds
        return whole, float(times["total"]) / 1e3, float(times["engine"]) / 1e3

    return ask


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
