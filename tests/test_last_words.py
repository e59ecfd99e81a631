"""The output of glideins is shown in part, commands no terminal, and is deleted when it is old."""

from __future__ import annotations

import os
import time
from pathlib import Path

from glide.factory.home import JOB_LOG, LARGEST_JOB_LOG, delete_old_files, entry_folder
from glide.factory.snapshot import Glidein
from glide.report.factory import LONGEST_LINE, last_lines, last_output
from glide.resources import find
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
    (used / JOB_LOG).write_bytes(b"000 (001.000.000)")
    delete_old_files(tmp_path, [used], now - 3000, ["1.0"], 3)
    assert not unused.exists()
    names = {"6.0": ("err", "logs"), **dict.fromkeys(("1.0", "5.0", "4.0"), ("err", "logs", "out"))}
    assert {path.name for path in used.iterdir()} == {JOB_LOG, *(f"{job}.{end}" for job in names for end in names[job])}


def test_large_job_log_is_renamed_and_replaces_an_earlier_one(tmp_path: Path):
    """A factory that runs for years must not fill its disk with it."""
    assert f" = {JOB_LOG}\n" in find("submit_templates", "glidein.sub").read_text("utf-8")
    folder = tmp_path / "template"
    folder.mkdir()
    log, old = folder / JOB_LOG, folder / f"{JOB_LOG}.old"
    for size, sizes in ((100, [100]), (LARGEST_JOB_LOG + 1, [LARGEST_JOB_LOG + 1]), (200, [200, LARGEST_JOB_LOG + 1])):
        with log.open("wb") as file:
            file.truncate(size)
        delete_old_files(tmp_path, [folder], 0.0, (), 3)
        assert [path.stat().st_size for path in (log, old) if path.exists()] == sizes
