"""Forms with files, multipart/form-data (RFC 7578).

TorchServe takes a form apart by itself, but answers a malformed one with a 500 and a stack trace.
So the front door has it pass bodies on as they are, and tells the content type in X-Content-Type.
"""

from email import message_from_bytes
from email.message import Message
from email.utils import collapse_rfc2231_value

from handler.errors import RequestError

# A form for this service has one field; what has more than this is not for it.
_MAX_PARTS = 100


def form_field(body: bytes | bytearray, content_type: str, name: str) -> bytes:
    """The content of one field.

    Args:
        body: of the request.
        content_type: of the request, with the boundary.
        name: of the field.

    Raises:
        RequestError: the body is malformed, or has other fields only.
    """
    header = Message()
    header["Content-Type"] = content_type
    boundary = (_parameter(header, "Content-Type", "boundary") or "").rstrip()
    if not boundary:
        raise RequestError("the Content-Type multipart/form-data has no boundary")
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    _, *parts = (b"\r\n" + bytes(body)).split(delimiter, _MAX_PARTS)
    if not parts or not parts[-1].startswith(b"--"):
        raise RequestError(
            "the body is not the form that its Content-Type says: its closing boundary is missing, "
            f"or it has over {_MAX_PARTS} fields"
        )
    names = []
    for part in parts[:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        disposition = message_from_bytes(head.lstrip() + b"\r\n\r\n")
        found = _parameter(disposition, "Content-Disposition", "name")
        if found == name:
            return content
        names.append(repr(found))
    listed = ", ".join(sorted(names))[:200] or "none"
    raise RequestError(
        f"expected an image or JSON as the body, or a multipart field {name!r}; got the form "
        f"fields {listed}"
    )


def _parameter(message: Message, header: str, name: str) -> str | None:
    """A parameter of a header, if it has that.

    Raises:
        RequestError: no parameter of the header can be read.
    """
    try:
        value = message.get_param(name, None, header)
    except TypeError:
        # From `a*=x; a*0=y`, one value whole and in parts (RFC 2231): Python compares None with 0.
        raise RequestError(f"the parameters of {header} cannot be read") from None
    return value if value is None else collapse_rfc2231_value(value)
