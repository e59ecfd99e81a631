"""What a restarted job has left to do. Apart from the client, whose first start needs no JSON."""

import json


def without_done(records: bytes, earlier: bytes) -> tuple[bytes, bytes]:
    """The input without the records that have a result, and those results; torn lines are no results."""
    results: dict[str, bytes] = {}
    for line in earlier.split(b"\n"):
        custom_id = _id(line)
        if custom_id is not None:
            results.setdefault(custom_id, line)
    left = [line for line in records.split(b"\n") if _id(line) not in results]
    return b"\n".join(left), b"".join(line + b"\n" for line in results.values())


def _id(line: bytes) -> str | None:
    try:
        return json.loads(line)["custom_id"]
    except (ValueError, KeyError, TypeError):
        return None
