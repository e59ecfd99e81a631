"""The invocation client: carries one job's records to the lane's model server and its results back.

Runs on the lane. A job's start is what an access point's throughput hangs on, so this reads and writes lines that
others parse, and imports next to nothing: 7 ms of CPU a start instead of 40 with json, socket and threading.
Usage, in a job file: `arguments = INPUT.jsonl OUTPUT.jsonl`.

Input: a JSON object a line with `custom_id` and `prompt`; a line without `custom_id` gives defaults for the
lines after it (`{"generate": {"max_new_tokens": 4}}`).
Output: `{"custom_id","text","tokens","error","seconds","glidein","attempts"}` a line, as they finish. The same lines
are streamed to the job's spool directory meanwhile; a restarted job finds them there and skips their records.

What the server says besides results are lines that begin with "#": "#begun N" records given to the engine,
"#refused WHY" where another lane may do, "#wrong WHY" where none would, and "#complete" when all have a result.
"""

import os
import select
import sys
import time

# socket itself takes as long to import as everything else here together.
from _socket import AF_UNIX, socket

from glide.invoke.stream import ResultStream, fetched
from glide.vocabulary import ID_VARIABLE, SOCKET_VARIABLE, Exit, Job

CHUNK = 1 << 18


def connect(path: str | os.PathLike[str]) -> socket:
    """Connect to a Unix socket whose path may exceed sun_path's 108 bytes."""
    folder = os.open(os.path.dirname(path), os.O_PATH)
    connection = socket(AF_UNIX)
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
        server = connect(os.environ[SOCKET_VARIABLE])
    except (OSError, KeyError) as error:
        print(f"no model server on this lane: {error!r}", file=sys.stderr)
        return Exit.SERVER_LOST
    with open(source, "rb") as file:
        records = file.read()
    earlier = b""
    if starts and (earlier := fetched(target)):
        from glide.invoke.resume import without_done

        records, earlier = without_done(records, earlier)
    hello = b'{"op":"serve","template":"%s","glidein":"%s","starts":%d}\n' % (
        job.get(Job.TEMPLATE, "").encode(), os.environ.get(ID_VARIABLE, "").encode(), starts,
    )  # fmt: skip
    request = hello + records.rstrip(b"\n") + b'\n{"op":"end"}\n'
    with open(target, "wb") as out:
        out.write(earlier)
        return _converse(server, memoryview(request), out, ResultStream(target))


def _converse(server: socket, request: memoryview, out, stream: ResultStream) -> int:
    """Send the request and write what comes back, here and to the stream; the exit code that fits."""
    server.setblocking(False)
    poll = select.poll()
    poll.register(server, select.POLLIN | select.POLLOUT)
    torn = b""
    while True:
        ready = poll.poll(stream.SECONDS * 1000)
        try:
            if request and ready and ready[0][1] & select.POLLOUT:
                request = request[server.send(request[:CHUNK]) :]
                if not request:
                    poll.modify(server, select.POLLIN)
            if ready and ready[0][1] & ~select.POLLOUT:
                data = server.recv(CHUNK)
                if not data:
                    break
                *lines, torn = (torn + data).split(b"\n")
                results = [line + b"\n" for line in lines if not line.startswith(b"#")]
                out.writelines(results)
                stream.add(results)
                for line in lines:
                    if line.startswith(b"#begun"):
                        stream.begun += int(line.split()[1])
                    elif line == b"#complete":
                        return Exit.OK
                    elif line.startswith((b"#refused", b"#wrong")):
                        print(line.decode(errors="replace"), file=sys.stderr)
                        return Exit.INPUT if line.startswith(b"#wrong") else Exit.SERVER_LOST
        except BlockingIOError:
            pass
        except OSError:
            break
        stream.flush(time.monotonic())
    print("the model server went away", file=sys.stderr)
    return Exit.SERVER_LOST


def read_ad(variable: str) -> dict[str, str]:
    """Simple attributes of the ad that the starter left in the file which this variable names."""
    try:
        with open(os.environ[variable], encoding="utf-8") as file:
            pairs = (line.partition(" = ") for line in file)
            return {name: value.strip().strip('"') for name, _, value in pairs}
    except (OSError, KeyError):
        return {}


def run() -> None:
    """The whole program. Ends without taking the interpreter down, which costs a millisecond and helps nobody."""
    code = main()
    sys.stderr.flush()
    os._exit(code)
