import json
from pathlib import Path
from typing import Any

import pytest
import requests

from server.settings import load_settings
from server.store import Archive
from server.torchserve import TorchServe
from tests.serving import ROOT, free_addresses

IDLE = {
    "minWorkers": 1,
    "workers": [],
    "maxBatchDelay": 1,
    "jobQueueStatus": {"pendingRequests": 0},
}


@pytest.mark.parametrize(
    "failure", [requests.ConnectionError, requests.ConnectTimeout, requests.ReadTimeout]
)
def test_a_frontend_that_stops_answering_is_not_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: type[Exception]
) -> None:
    settings = load_settings(ROOT / "config.properties", free_addresses())
    archives = [Archive(tmp_path / "a.mar", "a", "1.0", None)]
    torchserve = TorchServe(settings, archives, tmp_path)
    answers: list[Any] = [failure, IDLE, failure]

    def get(*_: Any, **__: Any) -> requests.Response:
        answer = answers.pop(0)
        if not isinstance(answer, dict):
            raise answer
        response = requests.Response()
        response.status_code = 200
        response._content = json.dumps([answer]).encode()
        return response

    monkeypatch.setattr(requests.Session, "get", get)
    assert torchserve.is_idle()  # it is not up yet
    assert torchserve.is_idle()
    assert not torchserve.is_idle()
