"""Words as HTCondor reads them: its "new" syntax for arguments and environments. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


def arguments(words: Iterable[str]) -> str:
    """Return words in the syntax of condor_submit's `arguments`, which keeps blanks and quotes in them."""
    return '"' + " ".join(map(_word, words)).replace('"', '""') + '"'


def environment(variables: Mapping[str, str]) -> str:
    """Return variables in the syntax of condor_submit's `environment`."""
    return arguments(f"{name}={value}" for name, value in variables.items())


def in_environment(value: str) -> str:
    """Return a variable's value as job files have it behind the name in `environment = "NAME=$(value)"`."""
    return _word(value).replace('"', '""')


def _word(word: str) -> str:
    plain = word and not any(letter.isspace() or letter == "'" for letter in word)
    return word if plain else "'" + word.replace("'", "''") + "'"
