"""`client.py FOLDER NUMBER`: a job on a lane that asks the lane's server again and again, one request after the other.

A request is a ticket (glide/server/ticket.py) with one record, as an invocation job's is one with many: the record's
file, a connection to the server, and its result's file. FOLDER has `requests.json`; when its file `go` is there, all
clients begin. `client-NUMBER.json` gets what each request took, in seconds: as a whole, from its being sent to the
server's last word, and in the engine. Server and client are on one host, and have its clock in common.

Standard library only, like everything that runs on a lane.
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
    told = json.loads((folder / "requests.json").read_text("utf-8"))
    requests = [{**told["defaults"], "custom_id": f"{number}-{at}", "prompt": prompt}
                for at, prompt in enumerate(told["prompts"][number])]  # fmt: skip
    port, cookie = Path(os.environ["GLIDE_SOCKET"]).read_text("utf-8").split()
    ticket = (cookie, str(Path.cwd()), str(REQUEST), str(RESULT), os.environ["_CONDOR_JOB_AD"], "", "")
    (folder / f"ready-{number}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    began = time.time()
    took = [ask(("127.0.0.1", int(port)), ticket, request) for request in requests]
    Path(f"client-{number}.json").write_text(json.dumps({"began": began, "ended": time.time(), "took": took}), "utf-8")


def ask(server: tuple[str, int], ticket: tuple[str, ...], request: dict[str, Any]) -> tuple[float, float, float]:
    """Have one record served; what that took as a whole, in the server, and in the engine."""
    began = time.monotonic()
    REQUEST.write_text(json.dumps(request) + "\n", "utf-8")
    with socket.create_connection(server) as connection, connection.makefile() as words:
        sent = time.monotonic()  # before it is sent: the server may have served it before this process goes on
        connection.sendall("".join(f"{line}\n" for line in ticket).encode())
        *said, end = words
    result = json.loads(RESULT.read_text("utf-8"))
    whole = time.monotonic() - began
    if end != "exit 0\n" or result["error"]:
        sys.exit(f"{request['custom_id']}: {said} {end} {result['error']}")
    left = float(said[-1].split()[4])  # "served from … to … s"
    return whole, left - sent, result["seconds"]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
