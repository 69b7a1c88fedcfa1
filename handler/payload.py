"""Request bodies, JSON and numbers: from what TorchServe hands a worker to a model's instances."""

import json
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from handler.errors import PayloadTooLargeError, RequestError
from handler.multipart import form_field

MAX_BODY_BYTES = 1 << 20
MAX_INSTANCES = 1024
# Instances in row-major order, one after the other: "B" is uint8, "f" is float32. Not a tensor yet:
# making one costs more than decoding a small image.
Numbers: TypeAlias = "array[int] | array[float]"
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
_FLOAT32 = (-FLOAT32_MAX, FLOAT32_MAX)


def body_of(request: Mapping[str, Any], content_type: str = "") -> Any:
    """The body of one request, or its multipart field `data`.

    Args:
        request: its parameters by name.
        content_type: of a form that is still to be taken apart.

    Returns:
        Bytes as they arrived. If TorchServe decoded JSON itself, which is the default of its
        `decode_input_request`, the decoded value.

    Raises:
        RequestError: no body, or form fields other than `data`.
        PayloadTooLargeError: over 1 MiB.
    """
    if content_type.lower().startswith("multipart/") and "body" in request:
        return form_field(request["body"], content_type, "data") or _refuse_empty()
    for name in ("data", "body"):
        if name in request:
            body = request[name]
            break
    else:
        if not request:
            # TorchServe parses a form before a worker sees it, and a body that is not one comes out
            # empty.
            raise RequestError(
                "the request has no body; or its Content-Type, such as the "
                "application/x-www-form-urlencoded of curl's -d, had it read as a form, and the "
                "form has no fields"
            )
        names = ", ".join(sorted(map(repr, request)))[:200]
        raise RequestError(
            f"expected an image or JSON as the body, or a multipart field 'data'; got the form "
            f"fields {names}"
        )
    if isinstance(body, str):
        body = body.encode()
    if isinstance(body, bytes | bytearray):
        if not body:
            _refuse_empty()
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLargeError(
                f"the body has {len(body)} bytes; the limit is {MAX_BODY_BYTES}"
            )
    return body


def _refuse_empty() -> NoReturn:
    raise RequestError("the request has no body")


def parse_json(body: bytes | bytearray) -> Any:
    """Decode a JSON body.

    Raises:
        RequestError: not JSON, nested too deeply, or with NaN or Infinity.
    """
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise RequestError("the body is JSON nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError, and integers of over 4,300 digits
        raise RequestError(f"the body is not valid JSON: {error}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def instances_of(document: Any) -> list[Any]:
    """The list under `instances`.

    Raises:
        RequestError: there is none, or it is empty.
        PayloadTooLargeError: it has over 1,024 instances.
    """
    if not isinstance(document, dict) or "instances" not in document:
        raise RequestError('expected a JSON object with "instances" or "inputs"')
    instances = document["instances"]
    if not isinstance(instances, list):
        raise RequestError(f"instances: expected a list, got {describe(instances)}")
    if not instances:
        raise RequestError(f"instances: expected 1 to {MAX_INSTANCES}, got 0")
    if len(instances) > MAX_INSTANCES:
        raise PayloadTooLargeError(
            f"instances: expected 1 to {MAX_INSTANCES}, got {len(instances)}"
        )
    return instances


def concatenate(parts: Sequence[Numbers]) -> Numbers:
    """One array of all parts: uint8 if all are, else float32."""
    if len(parts) == 1:
        return parts[0]
    typecode = "B" if all(part.typecode == "B" for part in parts) else "f"
    joined: Numbers = array(typecode)
    joined.frombytes(
        b"".join(part if part.typecode == typecode else array(typecode, part) for part in parts)
    )
    return joined


def parse_numbers(
    value: Any, shape: tuple[int, ...], bounds: tuple[float, float] | None, where: str
) -> Numbers:
    """Convert one instance given as nested lists of numbers.

    Args:
        value: from JSON.
        shape: expected lengths, outermost first.
        bounds: smallest and largest number accepted; None accepts float32's range.
        where: name of the value in an error, such as `instances[1]`.

    Returns:
        float32, as many as `shape` has.

    Raises:
        RequestError: another shape, not a number, or out of bounds.
    """
    length, *inner = shape
    what = "rows" if inner else "numbers"
    if not isinstance(value, list):
        raise RequestError(f"{where}: expected {length} {what}, got {describe(value)}")
    if len(value) != length:
        raise RequestError(f"{where}: expected {length} {what}, got {len(value)}")
    if not inner:
        check_numbers(value, bounds, where)
        return array("f", value)
    rows = (
        parse_numbers(row, tuple(inner), bounds, f"{where}[{index}]")
        for index, row in enumerate(value)
    )
    return concatenate(list(rows))


def check_numbers(
    numbers: list[Any],
    bounds: tuple[float, float] | None,
    where: str,
    types: tuple[type, ...] = (int, float),
) -> None:
    """Refuse a list in which anything is not a number of these types, or is out of bounds.

    Args:
        numbers: from JSON.
        bounds: smallest and largest number accepted; None accepts float32's range.
        where: name of the list in an error.
        types: `int`, or `int` and `float`.

    Raises:
        RequestError: names the first such number.
    """
    low, high = bounds or _FLOAT32
    for index, number in enumerate(numbers):
        # Types are compared because a bool is an int to isinstance. NaN is in no range.
        if type(number) not in types or not low <= number <= high:
            kind = "number" if float in types else "whole number"
            if bounds:
                kind += f" from {low:g} to {high:g}"
            elif type(number) in types:
                kind = f"finite {kind} in float32's range, -{high:.3g} to {high:.3g}"
            is_number = type(number) in (int, float)
            got = str(number)[:20] if is_number else describe(number)
            raise RequestError(f"{where}[{index}]: expected a {kind}, got {got}")


def describe(value: Any) -> str:
    """Name a value's JSON type, for an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")
