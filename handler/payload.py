"""From what TorchServe hands a worker to the instances that a model is asked about."""

import json
import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from handler.errors import PayloadTooLargeError, RequestError

MAX_BODY_BYTES = 1 << 20
MAX_INSTANCES = 1024
# Instances in row-major order, one after the other: "B" is uint8, "f" is float32. No tensors yet:
# making one costs more than decoding a small image.
Numbers: TypeAlias = "array[int] | array[float]"
_FINITE = (-sys.float_info.max, sys.float_info.max)


def body_of(request: Mapping[str, Any]) -> Any:
    """The body of one request, or of its multipart field `data`.

    Bytes as they arrived, unless the server decoded JSON itself, as a TorchServe whose
    `decode_input_request` has its default does: then the decoded value.

    Raises:
        RequestError: no body, or form fields other than `data`.
        PayloadTooLargeError: over 1 MiB.
    """
    for name in ("data", "body"):
        if name in request:
            body = request[name]
            break
    else:
        if not request:
            # TorchServe parses a form before a worker sees it, and what is none comes out empty.
            raise RequestError(
                "the request has no body, or one of the content type "
                "application/x-www-form-urlencoded (curl's for -d), which is read as a form"
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
            raise RequestError("the request has no body")
        if len(body) > MAX_BODY_BYTES:
            raise PayloadTooLargeError(
                f"the body has {len(body)} bytes; the limit is {MAX_BODY_BYTES}"
            )
    return body


def parse_json(body: bytes | bytearray) -> Any:
    """Decode a JSON body.

    Raises:
        RequestError: not JSON, nested too deeply, or with a constant that JSON does not have.
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
        RequestError: the document has none, or an empty one.
        PayloadTooLargeError: it has over 1,024.
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
    """One array of all parts: uint8 where all are, else float32."""
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
    """One instance given as nested lists of numbers.

    Args:
        value: what the JSON held.
        shape: the lengths expected, outermost first.
        bounds: the smallest and largest number accepted; None accepts every finite number.
        where: what to call the value in an error, such as `instances[1]`.

    Returns:
        float32, as many as `shape` has, infinite where a number is beyond float32's range.

    Raises:
        RequestError: another shape, something that is no number, or one out of bounds.
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
    """Refuse a list in which anything is no number of these types, or out of bounds.

    Raises:
        RequestError: naming the first such one.
    """
    low, high = bounds or _FINITE
    for index, number in enumerate(numbers):
        # Types are compared, because a bool is an int to isinstance; the range is false of NaN too.
        if type(number) not in types or not low <= number <= high:
            kind = "number" if float in types else "whole number"
            if bounds:
                kind += f" from {low:g} to {high:g}"
            elif type(number) in types:
                kind = f"finite {kind}"
            is_number = type(number) in (int, float)
            got = str(number)[:20] if is_number else describe(number)
            raise RequestError(f"{where}[{index}]: expected a {kind}, got {got}")


def describe(value: Any) -> str:
    """Name the JSON type of a value, for an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    names: dict[type, str] = {dict: "an object", list: "a list", str: "a string"}
    return names.get(type(value), "a number")
