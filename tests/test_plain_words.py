"""The project's texts stay readable: phrases that make a reader solve a riddle do not come back."""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON_TEXT = (tokenize.COMMENT, tokenize.STRING)
# What to write instead is in the second part.
BANNED = {
    r"\b(is|are|was|were) to be had\b": "is available",
    r"\bso many\b(?!.* that\b)": "the number's name",
    r"\banew\b": "again",
    r"\bas yet\b": "yet",
    r"\bin force\b": "active",
    r"\bof ours\b": "the noun's name",
    r"\bcomes? to lie\b": "is",
    r"\bis nobody's\b": "a subject and a verb",
    r"\b(is|are) told\b": "reports, logs, advertises",
    r"\b(is|are) believed\b": "is accepted",
    r"\bsays so\b": "reports it",
    r"\bsays? that it\b": "reports that it",
    r"\bword of\b": "report of",
    r"\bwhoever\b": "a subject that has a name",
    r"\bgoes on\b": "continues",
    r"\bgo on\b": "continue",
    r"\bheed(s|ed)?\b": "handle",
    r"\bnot less than is\b": "a number",
    r"\bno more than is\b": "a number",
    r"\bthe like of\b": "such as",
    r"\bsave for\b": "except",
    r"\bbut for (?!at most)": "except",
    r"\bere\b": "before",
    r"\bwhereof\b|\bthereof\b|\bwherein\b|\btherein\b": "a plain preposition",
    r"\bsees to it\b": "makes sure",
    r"\bat the ready\b": "ready",
    r"\blets? (us|it|them) not\b": "does not allow",
    r"\bmakes? do\b": "uses",
    r"\bhas its hands full\b": "is busy",
    r"\bon no purpose\b": "unexpected",
    r"\bbeyond doubt\b": "certain",
    r"\bfor company\b": "together",
    r"(?:^|[.:;] )Who (?!can|may|is the)\w+s?\b(?!.*\?)": "a subject: 'A node that …'",
    r"(?:^|[.:;] )What (?:is|was|has|goes|comes)\b(?!.*\?)": "a noun phrase: 'The files that …'",
    r"(?<=\w )carriers?\b|\bcarriers? \w": "invocation job",
    r"(?<=\w )parcels?\b|\bparcels? \w": "file set",
    r"\bmodest\b": "best effort",
}
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    if name.startswith(("glide/", "docs/", "submit_templates/", "site_configs/", "README", "CHANGELOG"))
    and name.endswith((".py", ".md", ".sub", ".yaml", ".sh", ".html")) and name != "docs/results.md"
]  # fmt: skip


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that people read: all of a document, comments and strings of a program."""
    text = path.read_text()
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in PYTHON_TEXT:
            for number, line in enumerate(token.string.splitlines(), token.start[0]):
                yield number, line.strip("\"'# rf")


def test_project_texts_avoid_hard_to_read_phrases():
    banned = {re.compile(pattern): instead for pattern, instead in BANNED.items()}
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}; write {instead}"
        for path in FILES if path.exists() for number, line in texts(path)
        for pattern, instead in banned.items() if (match := pattern.search(line))
    ]  # fmt: skip
    assert found == []
