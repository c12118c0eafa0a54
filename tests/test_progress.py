"""Bars are on the standard error of a terminal, and nowhere else."""

import io
import sys

from vssm._cli import say
from vssm._progress import track, track_stages


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_has_no_bars(capsys):
    assert list(track(range(3), "work")) == [0, 1, 2]
    with track_stages() as show:
        for done in range(3):
            show("stage", done, 2)
    assert capsys.readouterr() == ("", "stage: done\n")


def test_a_terminal_shows_what_is_done(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert list(track((x for x in "abc"), "work", 3)) == ["a", "b", "c"]
    assert "work:   0%" in terminal.getvalue() and "0/3" in terminal.getvalue()
    with track_stages() as show:
        show("first", 1, 2)
        show("first", 2, 2)
        show("second", 0, 4)
    shown = terminal.getvalue()
    assert "first:  50%" in shown and "second:   0%" in shown and "done" not in shown
    # What is left on the line is blank.
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""
    assert capsys.readouterr().out == ""


def test_lines_do_not_run_into_a_bar(monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    for number in track(range(2), "work"):
        say(f"line {number}", error=True)
    parts = terminal.getvalue().split("line ")
    assert len(parts) == 3 and "work:" in parts[0]
    for before in parts[:2]:
        assert before.rpartition("\r")[2].strip() == ""
