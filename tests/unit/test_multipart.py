import pytest
from requests import Request

from handler.errors import RequestError
from handler.multipart import form_field

BINARY = bytes(range(256)) + b"\r\n--\r\n\r\n" + b"\n\r"


def form(**fields: bytes) -> tuple[bytes, str]:
    """A form as a client makes it: its body and content type."""
    files = {name: (f"{name}.bin", content) for name, content in fields.items()}
    request = Request("POST", "http://h", files=files).prepare()
    assert isinstance(request.body, bytes)
    return request.body, request.headers["Content-Type"]


@pytest.mark.parametrize("content", [BINARY, b"", b"x", b"\r\n", b"-" * 300, bytes(1 << 20)])
def test_a_field_comes_out_as_it_went_in(content: bytes) -> None:
    assert form_field(*form(before=b"1", data=content, after=b"2"), "data") == content


def test_a_preamble_an_epilogue_and_quotes() -> None:
    body = (
        b'ignored\r\n--a b\r\ncontent-disposition: form-data; filename=x; name="data"\r\n'
        b"content-type: image/png\r\n\r\nyes\r\n--a b--\r\nignored"
    )
    assert form_field(body, 'Multipart/Form-Data; charset=utf-8; boundary="a b"', "data") == b"yes"


def test_other_fields_are_named() -> None:
    with pytest.raises(RequestError, match="got the form fields 'file', 'other'"):
        form_field(*form(other=b"1", file=b"2"), "data")


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"--x\r\n\r\n\r\n--x--", "multipart/form-data", "no boundary"),
        (b"--x\r\n\r\n\r\n--x--", 'multipart/form-data; boundary=""', "no boundary"),
        (b"--x--", "multipart/form-data; a*=1; a*0=2; boundary=x", "of Content-Type cannot be"),
        (
            b"--x\r\nContent-Disposition: form-data; a*=1; a*0=2\r\n\r\n\r\n--x--",
            "multipart/form-data; boundary=x",
            "of Content-Disposition cannot be read",
        ),
        (b"", "multipart/form-data; boundary=x", "closing boundary is missing"),
        (b"--x\r\n\r\nabc", "multipart/form-data; boundary=x", "closing boundary is missing"),
        (b"--x" * 9, "multipart/form-data; boundary=x", "got the form fields none"),
        (b"--x\r\n\r\n\r\n" * 101 + b"--x--", "multipart/form-data; boundary=x", "over 100"),
        (b"--x--", "multipart/form-data; boundary=x", "got the form fields none"),
        (b"--x\r\n\r\nabc\r\n--x--", "multipart/form-data; boundary=x", "fields None"),
    ],
)
def test_what_is_not_a_form(body: bytes, content_type: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        form_field(body, content_type, "data")
