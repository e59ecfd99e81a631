"""The file with the tokens of the users of `glide serve`."""

from __future__ import annotations

from pathlib import Path

import pytest

from glide.errors import InputError
from glide.serve.users import TokenFile, add_token


def token_file(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "tokens"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_tokens_in_clear_and_hashed_map_to_users(tmp_path: Path):
    path = token_file(tmp_path, "# tokens\n\nsecret ada@here\n")
    token = add_token(path, "bob")
    tokens = TokenFile(path)
    assert (tokens.user_of("secret"), tokens.user_of(token), tokens.user_of("other")) == ("ada@here", "bob", None)
    assert token not in path.read_text()


@pytest.mark.parametrize(
    "text, mode, problem",
    [
        ("secret ada\n", 0o644, "others can read the tokens; run chmod 600"),
        ("secret\n", 0o600, ":1: write a token and the name of a user"),
        ("a ada\nsecret x;y\n", 0o600, ":2: write a token and the name of a user"),
        ("sha256:beef ada\n", 0o600, ":1: after sha256:, write 64 hexadecimal digits"),
        ("a ada\na bob\n", 0o600, ":2: this token already belongs to ada"),
        ("# none\n", 0o600, "the file has no token"),
    ],
)
def test_wrong_token_file_is_refused(tmp_path: Path, text: str, mode: int, problem: str):
    with pytest.raises(InputError, match=problem):
        TokenFile(token_file(tmp_path, text, mode))


def test_changed_token_file_is_read_and_a_wrong_one_ignored(tmp_path: Path):
    path = token_file(tmp_path, "a ada\n")
    tokens = TokenFile(path)
    add_token(path, "bob")
    assert tokens.refresh() == "" and set(tokens.users.values()) == {"ada", "bob"}
    path.write_text("nonsense\n")
    assert ":1: write a token" in tokens.refresh() and tokens.user_of("a") == "ada"
