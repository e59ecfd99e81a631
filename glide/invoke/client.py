"""The invocation client: carries one job's records to the lane's model server and its results back.

Runs on the lane with nothing but the standard library, and starts in a few tens of milliseconds. Usage, in a job
file: `arguments = INPUT.jsonl OUTPUT.jsonl`.

Input: a JSON object a line with `custom_id` and `prompt`; a line without `custom_id` gives defaults for the
lines after it (`{"generate": {"max_new_tokens": 4}}`).
Output: `{"custom_id","text","tokens","error","glidein","attempts","seconds"}` a line, as they finish. The same lines
are streamed to the job's spool directory meanwhile; a restarted job finds them there and skips their records.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TextIO

from glide.invoke.stream import ResultStream, fetched
from glide.vocabulary import ID_VARIABLE, SOCKET_VARIABLE, Exit, Job


def connect(path: str | Path) -> socket.socket:
    """Connect to a Unix socket whose path may exceed sun_path's 108 bytes."""
    folder = os.open(os.path.dirname(path), os.O_PATH)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(f"/proc/self/fd/{folder}/{os.path.basename(path)}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(folder)
    return connection


def main() -> int:
    """Serve the input file named by the first argument into the output file named by the second."""
    source, target = sys.argv[1:3]
    job = read_ad("_CONDOR_JOB_AD")
    starts = int(job.get("NumJobStarts", 0))
    try:
        connection = connect(os.environ[SOCKET_VARIABLE])
    except (OSError, KeyError) as error:
        print(f"no model server on this lane: {error!r}", file=sys.stderr)
        return Exit.SERVER_LOST
    with open(target, "w", encoding="utf-8") as out:
        done = _earlier_results(target, out) if starts else set()
        with open(source, encoding="utf-8", newline="\n") as lines:
            records = [record for record in _records(lines) if record["custom_id"] not in done]
        with connection:
            hello = {"op": "serve", "template": job.get(Job.TEMPLATE)}
            threading.Thread(target=_send, args=(connection, hello, records), daemon=True).start()
            missing = _receive(connection, records, starts, out, target)
    if missing:
        print(f"the model server went away with {missing} of {len(records)} records to do", file=sys.stderr)
        return Exit.SERVER_LOST
    return Exit.OK


def _earlier_results(target: str, out: TextIO) -> set[str]:
    """Take over what an earlier start of this job left on the access point, and say whose results that is."""
    done = set()
    for line in fetched(target).decode(errors="replace").split("\n"):
        try:
            custom_id = json.loads(line)["custom_id"]
        except (ValueError, KeyError, TypeError):
            continue  # torn, or an account of what had begun
        if custom_id not in done:
            done.add(custom_id)
            out.write(line + "\n")
    return done


def _receive(connection: socket.socket, records: list[dict], starts: int, out: TextIO, target: str) -> int:
    """Write results as they come, here and on the access point; the number that did not come."""
    attempts = {record["custom_id"]: record.get("attempts", 0) + starts + 1 for record in records}
    glidein = os.environ.get(ID_VARIABLE, "")
    stream = ResultStream(target)
    stream.start()
    with connection.makefile("r", encoding="utf-8", newline="\n") as answers:
        for answer in map(json.loads, answers):
            if "begun" in answer:
                stream.begun += answer["begun"]
            elif "refused" in answer:
                print(f"refused: {answer['refused']}", file=sys.stderr)
                return len(attempts)
            else:
                stamp = {"glidein": glidein, "attempts": attempts.pop(answer["custom_id"])}
                line = json.dumps({**answer, **stamp}, ensure_ascii=False) + "\n"
                out.write(line)
                stream.add(line)
    return len(attempts)


def _records(lines):
    defaults: dict = {}
    for line in lines:
        if line.strip():
            fields = json.loads(line)
            if "custom_id" in fields:
                yield {**defaults, **fields}
            else:
                defaults = fields


def _send(connection: socket.socket, hello: dict, records: list[dict]) -> None:
    try:
        with connection.makefile("w", encoding="utf-8") as stream:
            for message in (hello, *records):
                stream.write(json.dumps(message) + "\n")
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the reader notices too, and says how much is missing


def read_ad(variable: str) -> dict[str, str]:
    """Simple attributes of the ad that the starter left in the file which this variable names."""
    try:
        with open(os.environ[variable], encoding="utf-8") as file:
            pairs = (line.partition(" = ") for line in file)
            return {name: value.strip().strip('"') for name, _, value in pairs}
    except (OSError, KeyError):
        return {}


if __name__ == "__main__":
    sys.exit(main())
