import contextlib
import socket
from collections.abc import Iterator, Mapping

import pytest
import requests

from server.control import Probe, Scrape, TelemetryServer
from server.settings import Address, load_settings
from server.supervisor import ServerError, check_ports
from tests.serving import ROOT, free_addresses

PROBES: dict[str, Probe] = {"/livez": lambda: (503, {"status": "dead"})}
SCRAPES: dict[str, Scrape] = {"/metrics": lambda: ("text/plain", b"up 1\n")}


@contextlib.contextmanager
def telemetry(probes: Mapping[str, Probe] = PROBES) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = Address("127.0.0.1", free.getsockname()[1], "TELEMETRY_ADDRESS")
    server = TelemetryServer(address, probes, SCRAPES)
    server.start()
    try:
        yield address.url
    finally:
        server.stop()


def test_a_probe_gives_status_and_json() -> None:
    with telemetry() as url:
        for path in ("/livez", "/livez?verbose"):
            response = requests.get(url + path, timeout=10)
            assert response.status_code == 503
            assert response.json() == {"status": "dead"}
            assert response.headers["Content-Type"] == "application/json"
        head = requests.head(url + "/livez", timeout=10)
        assert (head.status_code, head.content) == (503, b"")


def test_another_path_names_those_that_there_are() -> None:
    with telemetry() as url:
        response = requests.get(url + "/", timeout=10)
        assert response.status_code == 404
        assert response.json() == {"paths": ["/livez", "/metrics"]}


def test_two_listeners_on_one_port() -> None:
    addresses = free_addresses()
    addresses["TELEMETRY_ADDRESS"] = addresses["TS_METRICS_ADDRESS"]
    settings = load_settings(ROOT / "config.properties", addresses)
    with pytest.raises(ServerError, match="TS_METRICS_ADDRESS and TELEMETRY_ADDRESS are both"):
        check_ports(settings)


def test_an_address_of_another_machine() -> None:
    addresses = free_addresses() | {"TS_METRICS_ADDRESS": "http://192.0.2.1:80"}
    settings = load_settings(ROOT / "config.properties", addresses)
    with pytest.raises(ServerError, match=r"192\.0\.2\.1:80 cannot be used: .*TS_METRICS_ADDRESS"):
        check_ports(settings)


@pytest.mark.parametrize(("error", "told"), [(ConnectionResetError, False), (KeyError, True)])
def test_a_prober_that_goes_away_is_no_news(
    error: type[Exception], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> tuple[int, dict[str, str]]:
        raise error

    with telemetry({"/livez": fail}) as url, pytest.raises(requests.ConnectionError):
        requests.get(url + "/livez", timeout=10)
    assert (error.__name__ in capsys.readouterr().err) is told
