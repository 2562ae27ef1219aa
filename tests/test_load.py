"""Two people at one server; `python tests/load.py` queues two hundred prompts."""

from __future__ import annotations

from comfyui_server import Server
from load import FLAT, put_load
from test_server import STARTED, server

__all__ = ["server"]


def test_two_people_who_cancel_now_and_then_get_what_they_asked_for(server: Server, mini_weights: None) -> None:
    report = put_load(server, STARTED, 12, 0)
    assert report.wrong == 0 and report.done + report.cancelled + report.refused == report.prompts
    assert report.done >= 5 and report.ports == 1 and report.files_left == []
    # So few prompts leave more of torch's own habits in it than two hundred do.
    assert report.megabytes < report.warm_megabytes * FLAT * 1.1, report
