"""`client.py FOLDER NUMBER`: a job on a lane that sends requests to the lane's model server, one after the other.

A request has one record, but an invocation job has many (glide/server/ticket.py). For each request, the client writes
the record into a file and connects to the server, and the server writes the result into a second file. The prompts of
all clients are in FOLDER/requests.json. All clients begin as soon as the file FOLDER/go exists.

For each request, the client writes three durations in seconds into `client-NUMBER.json`. The first is the total. The
second is the time in the server, from the sending of the request to the server's last line. The third is the time in
the engine. Server and client use the same clock, because they are on the same host.

This program needs only the standard library, like everything that runs on a lane.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

REQUEST, RESULT = Path("request.jsonl"), Path("result.jsonl")


def main(folder: Path, number: int) -> None:
    asked = json.loads((folder / "requests.json").read_text("utf-8"))
    requests = [{**asked["defaults"], "custom_id": f"{number}-{at}", "prompt": prompt}
                for at, prompt in enumerate(asked["prompts"][number])]  # fmt: skip
    port, cookie = Path(os.environ["GLIDE_SOCKET"]).read_text("utf-8").split()
    ticket = (cookie, str(Path.cwd()), str(REQUEST), str(RESULT), os.environ["_CONDOR_JOB_AD"], "", "")
    (folder / f"ready-{number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    began = time.time()
    took = [ask(("127.0.0.1", int(port)), ticket, request) for request in requests]
    Path(f"client-{number}.json").write_text(json.dumps({"began": began, "ended": time.time(), "took": took}), "utf-8")


def ask(server: tuple[str, int], ticket: tuple[str, ...], request: dict[str, Any]) -> tuple[float, float, float]:
    """Send one request. Return its total seconds, its seconds in the server, and its seconds in the engine."""
    began = time.monotonic()
    REQUEST.write_text(json.dumps(request) + "\n", "utf-8")
    with socket.create_connection(server) as connection, connection.makefile() as answer:
        sent = time.monotonic()  # before sending, because the server can answer before this process runs again
        connection.sendall("".join(f"{line}\n" for line in ticket).encode())
        *lines, end = answer
    result = json.loads(RESULT.read_text("utf-8"))
    whole = time.monotonic() - began
    if end != "exit 0\n" or result["error"]:
        sys.exit(f"request {request['custom_id']} failed: {lines} {end} {result['error']}")
    left = float(lines[-1].split()[4])  # the server's last line is "served from … to … s"
    return whole, left - sent, result["seconds"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
