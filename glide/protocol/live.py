"""The connection between `glide serve` and a model server, over which live calls and their results go.

Sessions use the same connections. Here and in the messages, `glide serve` stands for both.
`glide serve` submits standing jobs. The input of a standing job has no records. Its only line is an invitation: where
`glide serve` listens, the fingerprint of its certificate, and a secret. The model server of the job's lane connects to
this address with TLS, and checks the fingerprint. Each secret is valid once. With each welcome, the model server gets
the secret of its next connection, which it needs if this connection breaks.

Both sides send messages as frames (glide.protocol.frames). Each message is a JSON object with one of these keys:

| sender | key | value |
|---|---|---|
| node | `hello` | the fields of Hello, as the first message |
| serve | `welcome` | the secret of the next connection |
| serve | `refused` | why the connection is refused; the job ends |
| serve | `call` | a request with the fields of a record (glide.protocol.request); `custom_id` is the call's number |
| serve | `cancel` | the number of a call whose result nobody needs any more |
| serve | `end` | why the job must end; no further call follows |
| node | `result` | the line of a result, as in the output of a job; `custom_id` is the call's number |
| node | `text` | the number of a call and the next piece of its text; null if the text begins again |
| node | `capacity` | number of calls that the engine should have at a time; 0 while it is not ready |
| both | `ping` | nothing; sent regularly, so that a broken connection is noticed |
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from glide.protocol.result import is_count
from glide.system import open_regular

PING_SECONDS = 3.0  # seconds between two pings
SILENT_SECONDS = 12.0  # a connection without any message for this number of seconds is broken
HELLO_SECONDS = 10.0  # time limit for a TLS handshake and the first message, in seconds
INVITATION_BYTES = 1 << 14  # maximum length of an invitation, in bytes


@dataclass(frozen=True)
class Invitation:
    """The input of a standing job.

    Attributes:
        host, port: the address on which `glide serve` listens for model servers.
        fingerprint: sha256 of its certificate, in hexadecimal form.
        job: name of the standing job at `glide serve`.
        secret: the secret of the first connection.
    """

    host: str
    port: int
    fingerprint: str
    job: str
    secret: str

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_invitation(path: Path) -> Invitation:
    """Return the invitation in a standing job's input.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file has no valid invitation.
    """
    with open_regular(path) as file:
        fields = json.loads(file.read(INVITATION_BYTES))
    if not isinstance(fields, dict):
        raise ValueError("not a JSON object")
    try:
        invitation = Invitation(**fields)
    except TypeError as error:
        raise ValueError(str(error)) from None
    texts = (invitation.host, invitation.fingerprint, invitation.job, invitation.secret)
    if not all(isinstance(text, str) for text in texts) or not is_count(invitation.port):
        raise ValueError("a field has a wrong type")
    return invitation


@dataclass(frozen=True)
class Hello:
    """The first message of a model server.

    Attributes:
        job: name of the standing job, from the invitation.
        secret: the secret of this connection.
        glidein: GlideId of the glidein.
        template: digest of the template that the model server has loaded.
        capacity: number of calls that the engine should have at a time; 0 while it is not ready.
        retires: Unix time after which the glidein should get no further calls; 0 if it is unknown.
    """

    job: str
    secret: str
    glidein: str
    template: str
    capacity: int
    retires: int

    @classmethod
    def from_message(cls, message: Any) -> Hello:
        """Return the content of a first message.

        Raises:
            ValueError: the message is not valid.
        """
        try:
            hello = cls(**message["hello"])
        except (TypeError, KeyError):
            raise ValueError("the first message is not a hello") from None
        texts = (hello.job, hello.secret, hello.glidein, hello.template)
        numbers = (hello.capacity, hello.retires)
        if not all(isinstance(text, str) for text in texts) or not all(map(is_number, numbers)):
            raise ValueError("a field of the hello has a wrong type")
        return hello


def is_number(value: object) -> bool:
    """Return whether a value is a whole number that a capacity or a Unix time may have."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40
