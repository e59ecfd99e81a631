"""Write arguments and environments in HTCondor's "new" syntax, which allows spaces and quotes.

This module uses only the standard library.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def arguments(words: Iterable[str]) -> str:
    """Return these words as a value of `arguments` in a job file. A word may contain spaces and quotes."""
    return '"' + " ".join(map(_word, words)).replace('"', '""') + '"'


def environment(variables: Mapping[str, str]) -> str:
    """Return these variables as a value of `environment` in a job file."""
    return arguments(f"{name}={value}" for name, value in variables.items())


def in_environment(value: str) -> str:
    """Quote a value for a job file. In the line `environment = "NAME=…"`, the result replaces the `…`."""
    return _word(value).replace('"', '""')


def _word(word: str) -> str:
    plain = word and not any(letter.isspace() or letter == "'" for letter in word)
    return word if plain else "'" + word.replace("'", "''") + "'"
