"""What an experiment leaves."""

import json
import sys

import pytest
from matplotlib.figure import Figure

from glide.report.experiment import Comparison, Experiment, Measurement, arguments, number, writable


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (12345.6, "s", "12,346 s"),
        (12.34, "×", "12.3×"),
        (3.456, "s", "3.46 s"),
        (0.01234, "", "0.012"),
        (0, "%", "0%"),
    ],
)
def test_experiment_numbers_have_three_significant_digits(value, unit, told):
    assert number(value, unit) == told


def test_repeated_measurement_is_shown_with_range():
    assert str(Measurement((3.0, 1.0, 2.0), "s")) == "2.00 s (1.00–3.00)"
    assert str(Measurement((3.0,), "s")) == "3.00 s"


@pytest.mark.parametrize(("here", "better", "goal", "met"), [
    ((1.0, 2.0, 9.0), "more", None, True), ((1.0, 1.9, 9.0), "more", None, False), ((1.9,), "more", 1.5, True),
    ((1.0, 2.0, 9.0), "less", None, True), ((1.0, 2.1, 3.0), "less", None, False), ((9.0,), "", None, True),
    ((), "more", None, True),
])  # fmt: skip
def test_goal_is_met_if_the_median_is_on_its_better_side(here, better, goal, met):
    compared = Comparison("speed-up", 2.0, "×", Measurement(here, "×") if here else None, better=better, goal=goal)
    assert compared.met == met


def test_experiment_writes_json_data_markdown_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "try.py"), "--out", str(tmp_path), "--repeat", "2"])
    monkeypatch.chdir(tmp_path)
    speedup = Measurement((3.5, 3.9), "×")
    experiment = Experiment(
        "try", "A try", "Does it?", ("system", "makespan"), [("a|b", Measurement((1.0, 3.0), "s")), ("c", 1234)],
        [Comparison("speed-up", 3.6, "×", speedup)], ["It is one."], {"curve": [1, 2]},
    )  # fmt: skip
    experiment.write(writable(str(tmp_path / "out")), Figure())
    told = json.loads((tmp_path / "out" / "try.json").read_text())
    assert told["command"] == ".venv/bin/python try.py --repeat 2" and told["machine"]["cores"] >= 1
    assert told["rows"] == [["a|b", "2.00 s (1.00–3.00)"], ["c", "1,234"]]
    assert told["compared"][0]["here"] == [3.5, 3.9] and told["versions"]["glide"]
    text = (tmp_path / "out" / "try.md").read_text()
    assert text.splitlines()[2] == r"| a\|b | 2.00 s (1.00–3.00) |" and text in capsys.readouterr().out
    assert (tmp_path / "out" / "try.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "says"), [
    (("--repeat", "0"), "--repeat: invalid positive value: '0'"),
    (("--repeat", "two"), "--repeat: invalid positive value: 'two'"),
    (("--out", "/dev/null/there"), "--out: /dev/null/there: Not a directory"),
])  # fmt: skip
def test_invalid_experiment_arguments_are_refused_before_measurement(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    parser = arguments("It tries.", "try", "A minute.", repeat=3)
    with pytest.raises(SystemExit):
        parser.parse_args(words)
    assert says in capsys.readouterr().err


def test_experiment_help_shows_duration_and_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = arguments("It tries.", "try", "A minute.", repeat=3).format_help()
    assert "A minute." in told and "default: 3" in told and "default: results/try" in told
    assert list(tmp_path.iterdir()) == []
