from server.counters import Succession

FIRST = b"""\
# HELP r_total Requests.
# TYPE r_total counter
r_total{proxy="door",code="2xx"} 5
r_total{proxy="door",code="5xx"} 1
# TYPE up gauge
up 3
# TYPE h histogram
h_bucket{le="1"} 2
h_sum 0.5
h_count 2
"""
SECOND = b"""\
# HELP r_total Requests.
# TYPE r_total counter
r_total{proxy="door",code="2xx"} 2
# TYPE up gauge
up 1
"""


def lines(succession: Succession) -> list[str]:
    return succession.text().decode().splitlines()


def test_one_process_is_passed_on_as_it_is() -> None:
    succession = Succession()
    assert succession.text() == b""
    succession.update("a", FIRST)
    assert succession.text() == FIRST
    succession.update("a", b"")  # it did not answer
    assert succession.text() == FIRST


def test_no_counter_goes_down_when_a_process_is_replaced() -> None:
    succession = Succession()
    succession.update("a", FIRST)
    succession.update("b", SECOND)
    for _ in range(2):
        seen = lines(succession)
        assert 'r_total{proxy="door",code="2xx"} 7' in seen
        assert 'r_total{proxy="door",code="5xx"} 1' in seen
        assert "up 1" in seen
        assert "up 3" not in seen
        assert {'h_bucket{le="1"} 2', "h_sum 0.5", "h_count 2"} <= {*seen}
        assert seen.index('r_total{proxy="door",code="5xx"} 1') < seen.index("# TYPE up gauge")
        succession.end("a")
    assert succession.total("r_total", "door") == 8
    succession.end("b")
    succession.update("c", SECOND)
    assert 'r_total{proxy="door",code="2xx"} 9' in lines(succession)
