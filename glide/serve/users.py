"""The users of the API. The token file maps each user's bearer token to the name of a user of the pool."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from glide.errors import InputError
from glide.system import publish

HASHED = "sha256:"  # a word that begins with this text is the hash of a token, and not the token
USER = re.compile(r"[\w.+-]{1,100}(@[\w.-]{1,200})?")


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def new_token() -> str:
    return f"glide-{secrets.token_urlsafe(32)}"


class TokenFile:
    """A file with a line `TOKEN USER` for each token. In place of the token, a line may have `sha256:` and its hash.

    If the file changes, the next request uses the new content. If the new content is wrong, the old one stays valid.

    Args:
        path: the file. No other account may be able to read it.

    Raises:
        InputError: the file cannot be read, or a line is wrong.
    """

    def __init__(self, path: Path):
        self.path = path
        self.users: Mapping[str, str] = {}
        self.changed = 0.0
        self._read()

    def user_of(self, token: str) -> str | None:
        """Return the user of a token; None if the token is unknown."""
        return self.users.get(digest(token))  # a hash reveals nothing about similar tokens, even by its timing

    def refresh(self) -> str:
        """Read the file again if it has changed. Return what is wrong with it; an empty text if nothing is."""
        try:
            if self.path.stat().st_mtime != self.changed:
                self._read()
        except OSError as error:
            return f"{self.path}: {error.strerror}"
        except InputError as error:
            return str(error)
        return ""

    def _read(self) -> None:
        try:
            status = self.path.stat()
            lines = self.path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.path}: cannot read the tokens: {error}") from None
        if status.st_mode & 0o077:
            raise InputError(f"{self.path}: others can read the tokens; run chmod 600 {self.path}")
        users: dict[str, str] = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) != 2 or not USER.fullmatch(words[1]):
                raise InputError(f"{self.path}:{number}: write a token and the name of a user, as in: TOKEN ada")
            key = words[0].removeprefix(HASHED) if words[0].startswith(HASHED) else digest(words[0])
            if not re.fullmatch(r"[0-9a-f]{64}", key):
                raise InputError(f"{self.path}:{number}: after {HASHED}, write 64 hexadecimal digits")
            if users.setdefault(key, words[1]) != words[1]:
                raise InputError(f"{self.path}:{number}: this token already belongs to {users[key]}")
        if not users:
            raise InputError(f"{self.path}: the file has no token; add one with: glide serve --new-token USER")
        self.users, self.changed = users, status.st_mtime


def add_token(path: Path, user: str) -> str:
    """Add the hash of a new token to a token file, and return the token.

    Raises:
        InputError: the file cannot be written, or the user's name is not valid.
    """
    if not USER.fullmatch(user):
        raise InputError(f"{user!r} is not the name of a user; write it as in condor_q, for example ada")
    token = new_token()
    try:
        before = path.read_text("utf-8") if path.exists() else ""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        before += "" if before.endswith("\n") or not before else "\n"
        publish(path, f"{before}{HASHED}{digest(token)} {user}\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot write the token: {error}") from None
    return token
