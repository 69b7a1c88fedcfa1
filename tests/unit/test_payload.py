import math
from array import array

import pytest
import torch

from handler.errors import PayloadTooLargeError, RequestError
from handler.payload import (
    FLOAT32_MAX,
    MAX_BODY_BYTES,
    body_of,
    concatenate,
    instances_of,
    parse_json,
    parse_numbers,
)


def test_the_field_named_data_comes_first() -> None:
    assert body_of({"body": b"a", "data": b"b"}) == b"b"
    assert body_of({"body": "text"}) == b"text"


@pytest.mark.parametrize("request_", [{}, {"body": b""}, {"data": bytearray()}])
def test_no_body(request_: dict[str, bytes]) -> None:
    with pytest.raises(RequestError, match="no body"):
        body_of(request_)


def test_the_limit_of_a_body_is_inclusive() -> None:
    assert len(body_of({"body": bytes(MAX_BODY_BYTES)})) == MAX_BODY_BYTES
    with pytest.raises(PayloadTooLargeError):
        body_of({"body": bytes(MAX_BODY_BYTES + 1)})


@pytest.mark.parametrize("body", [b"", b"{", b"nul", b"\xff", b"[" * 200_000, b"Infinity"])
def test_not_json(body: bytes) -> None:
    with pytest.raises(RequestError):
        parse_json(body)


def test_instances_up_to_the_limit() -> None:
    assert len(instances_of({"instances": [0] * 1024})) == 1024


def test_numbers_keep_their_value() -> None:
    assert parse_numbers([1, 0.5, -2e-3], (3,), None, "x").tolist() == pytest.approx(
        [1, 0.5, -2e-3]
    )
    assert parse_numbers([[0, 255], [1, 2]], (2, 2), (0, 255), "x").tolist() == [0, 255, 1, 2]


def test_parts_of_one_type_keep_it_and_others_become_float32() -> None:
    pixels, numbers = array("B", [0, 255]), array("f", [0.5])
    assert concatenate([pixels, pixels]) == array("B", [0, 255, 0, 255])
    assert concatenate([pixels, numbers]) == array("f", [0, 255, 0.5])
    assert concatenate([numbers]) == numbers


def test_the_limits_of_float32_are_inclusive() -> None:
    limits = [-FLOAT32_MAX, FLOAT32_MAX]
    assert parse_numbers(limits, (2,), None, "x").tolist() == limits
    assert torch.finfo(torch.float32).max == FLOAT32_MAX


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([math.nan, 0], r"x\[0\]: expected a finite number in float32's range, .*, got nan"),
        ([0, 10**400], r"x\[1\]: expected a finite number in float32's range, .*, got 1000"),
        ([0, -1e300], r"float32's range, -3.4e\+38 to 3.4e\+38, got -1e\+300"),
        ([0, math.nextafter(FLOAT32_MAX, math.inf)], r"float32's range, .*, got 3.40282346638528"),
        ([0, False], r"x\[1\]: expected a number, got false"),
        ([0, {}], r"x\[1\]: expected a number, got an object"),
        ("ab", "x: expected 2 numbers, got a string"),
        (None, "x: expected 2 numbers, got null"),
    ],
)
def test_what_is_not_a_number(value: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_numbers(value, (2,), None, "x")
