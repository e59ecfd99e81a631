"""The output of glideins is shown in part, commands no terminal, and is deleted when it is old."""

from __future__ import annotations

import os
import time
from pathlib import Path

from glide.factory.home import delete_old_files, entry_folder
from glide.factory.snapshot import Glidein
from glide.report.factory import LONGEST_LINE, last_lines, last_output
from glide.vocabulary import JobStatus


def test_last_output_of_blank_glidein_can_be_read(tmp_path: Path):
    """A blank one has no template, and its folder has a name of its own."""
    for template in ("", "0" * 64):
        glidein = Glidein(7, 1, "here", template, JobStatus.COMPLETED)
        folder = entry_folder(tmp_path, "here", template)
        folder.mkdir(parents=True)
        (folder / "7.1.out").write_text(f"said by {template or 'a blank one'}\n")
        assert last_output(tmp_path, glidein) == [f"said by {template or 'a blank one'}"]
    assert last_output(tmp_path, Glidein(8, 1, "here", "", JobStatus.COMPLETED)) == []


def test_last_output_lines_are_found_without_reading_everything(tmp_path: Path):
    output = tmp_path / "1.0.out"
    with output.open("wb") as file:
        file.truncate(1 << 40)  # a hole: who reads it whole needs a terabyte of memory
        file.seek(0, 2)
        file.write(b"\nalmost the end\n" + b"x" * 5000 + b"\n\x1b]0;title\x07\x1b[2J\xff\xfe the end\n")
    output.with_suffix(".err").write_bytes(b"Traceback\r\n")
    lines = last_lines(output, 4)
    assert lines[0] == "almost the end" and len(lines[1]) == LONGEST_LINE
    assert lines[2] == "?]0;title??[2J\ufffd\ufffd the end" and lines[3] == "Traceback"


def test_outputs_of_the_newest_ended_glideins_and_of_running_ones_stay(tmp_path: Path):
    used, unused = tmp_path / "used", tmp_path / "unused"
    now = time.time()
    for folder, jobs in ((used, range(1, 7)), (unused, range(7, 9))):
        folder.mkdir()
        for job in jobs:
            (folder / f"{job}.0.logs").mkdir()
            for path in (folder / f"{job}.0.out", folder / f"{job}.0.err", folder / f"{job}.0.logs"):
                path.touch()
                os.utime(path, (now, now - 1000 + job))
    os.utime(used / "6.0.out", (now, now - 5000))
    for path in (unused, *unused.iterdir()):
        os.utime(path, (now, now - 5000))
    delete_old_files(tmp_path, [used], now - 3000, ["1.0"], 3)
    assert not unused.exists()
    names = {"6.0": ("err", "logs"), **dict.fromkeys(("1.0", "5.0", "4.0"), ("err", "logs", "out"))}
    assert {path.name for path in used.iterdir()} == {f"{job}.{kind}" for job in names for kind in names[job]}
