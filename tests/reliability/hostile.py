"""Hostile requests in any number, each made from a seed and its index alone.

`python -m tests.reliability.hostile SEED INDEX` writes the bytes of one to standard output.
"""

import base64
import functools
import gzip
import io
import json
import random
import struct
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tests.images import b64, dearest_png, encode, png_chunk
from tests.reliability.wire import request
from tests.serving import ROOT

MIB = 1 << 20
SEVEN = (ROOT / "samples" / "seven.png").read_bytes()
_PNG = b"\x89PNG\r\n\x1a\n"
_BYTES = (0, 1, 0x7F, 0x80, 0xFF)
_INTEGERS = (0, 1, 0x7F, 0xFF, 0x100, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
JSON_LENGTH = b"Inference-Header-Content-Length"


@dataclass(frozen=True)
class Case:
    """One request, and how it may be answered.

    Attributes:
        kind: what is wrong with it, or may be.
        wire: its bytes.
        method: its method.
        statuses: besides 200 and 503, which a dear request may get.
        is_alone: whether it comes on a connection of its own, which ends with its answer.
    """

    kind: str
    wire: bytes
    method: str = "POST"
    statuses: frozenset[int] = frozenset({400, 413, 415})
    is_alone: bool = False


def make(seed: int, index: int) -> Case:
    """The request with this index; the same whenever it is made."""
    rng = random.Random(f"{seed}/{index}")
    kind = rng.choices(list(_KINDS), [weight for weight, _ in _KINDS.values()])[0]
    return one(kind, rng)


def one(kind: str, rng: random.Random) -> Case:
    """A request of one kind."""
    made = _KINDS[kind][1](rng)
    return made if isinstance(made, Case) else Case(kind, made)


def kinds() -> Sequence[str]:
    """All kinds of requests that there are."""
    return list(_KINDS)


# --- Bytes.


def mutate(data: bytes, rng: random.Random, times: int = 3) -> bytes:
    """Change bytes, cut, repeat, insert, up to so many times."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, times)):
        rng.choice(_MUTATIONS)(changed, rng)
    return bytes(changed)


def _flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: random.Random) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice(_BYTES)


def _set_integer(data: bytearray, rng: random.Random) -> None:
    """Sizes and offsets stand near the begin of a file."""
    size = rng.choice((2, 4))
    if len(data) >= size:
        at = rng.randrange(min(len(data), 80) - size + 1)
        number = rng.choice(_INTEGERS) & (256**size - 1)
        data[at : at + size] = number.to_bytes(size, rng.choice(("big", "little")))


def _slice(data: bytearray, rng: random.Random) -> slice:
    begin = rng.randint(0, len(data))
    return slice(begin, min(len(data), begin + rng.choice((1, 4, 16, 256))))


def _delete(data: bytearray, rng: random.Random) -> None:
    del data[_slice(data, rng)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    part = _slice(data, rng)
    data[part.stop : part.stop] = data[part] * rng.choice((1, 2, 20))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randint(0, len(data))
    data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randint(0, len(data)) :]


_MUTATIONS = (_flip, _set_byte, _set_integer, _delete, _repeat, _insert, _cut)


def with_checksums(png: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now, so that decoders read it."""
    parts, at = [png[:8]], 8
    while at + 12 <= len(png):
        (length,) = struct.unpack_from(">I", png, at)
        content = png[at + 8 : at + 8 + length]
        parts.append(png_chunk(png[at + 4 : at + 8], content))
        at += 12 + length
    return b"".join(parts)


# --- Pictures.


@functools.cache
def originals() -> tuple[bytes, ...]:
    """Valid pictures in every format and many of their modes."""
    seven = Image.open(io.BytesIO(SEVEN)).convert("L")
    large = seven.resize((90, 70))
    color = Image.merge("RGB", [large, large.point(lambda v: 255 - v), large])
    alpha = color.copy()
    alpha.putalpha(large)
    deep = large.convert("I").point(lambda v: v * 257).convert("I;16")
    frames: dict[str, Any] = {"save_all": True, "append_images": [color.rotate(90), color]}
    modes = [seven, seven.convert("1"), large, color, alpha, color.convert("P")]
    return (
        SEVEN,
        *(encode(image) for image in (*modes, deep, large.convert("LA"))),
        *(encode(image, "JPEG") for image in (seven, large, color, color.convert("CMYK"))),
        encode(
            color, "JPEG", progressive=True, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0"
        ),
        *(encode(image, "BMP") for image in modes),
        *(encode(image, "GIF") for image in (seven, color.convert("P"))),
        encode(color, "GIF", **frames),
        *(encode(image, "WEBP") for image in (large, color, alpha)),
        encode(alpha, "WEBP", lossless=True),
        encode(color, "WEBP", **frames),
    )


def picture(rng: random.Random) -> bytes:
    """A picture with bytes changed, or the head of one and the tail of another."""
    data = rng.choice(originals())
    if rng.random() < 0.15:
        other = rng.choice(originals())
        data = data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]
    else:
        data = mutate(data, rng)
    return with_checksums(data) if data.startswith(_PNG) and rng.random() < 0.7 else data


def _picture(rng: random.Random) -> bytes:
    return request("/predictions/mnist", picture(rng))


def _pictures_in_json(rng: random.Random) -> bytes:
    instances: list[Any] = [b64(picture(rng)) for _ in range(rng.randint(1, 4))]
    if rng.random() < 0.3:
        instances[0]["b64"] = mutate(instances[0]["b64"].encode(), rng).decode("latin-1")
    return request("/predictions/mnist", json.dumps({"instances": instances}).encode())


def _polyglot(rng: random.Random) -> bytes:
    """One file that several readers take for theirs."""
    parts = [
        rng.choice(originals()),
        b'{"instances": [[0, 1]]}',
        b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        b"PK\x03\x04" + rng.randbytes(26),
        b"<html><script>alert(1)</script>",
        b"GIF89a/*" + b"*/=1;",
        b"\x80\x04cposix\nsystem\n(S'false'\ntR.",
        b"%!PS\n(/etc/passwd) (r) file\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    ]
    rng.shuffle(parts)
    body = b"".join(parts[: rng.randint(2, 4)])
    return request(rng.choice(("/predictions/mnist", "/predictions/xor")), body)


@functools.cache
def bombs() -> tuple[bytes, ...]:
    """Small bodies that ask for much memory or time."""
    side = 4096
    white = Image.new("L", (side, side), 255)
    white.paste(0, (1000, 1000, 1400, 3000))
    gray = white.resize((2048, 2048))

    def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
        header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        all_chunks = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
        return _PNG + b"".join(png_chunk(*chunk) for chunk in all_chunks)

    text = zlib.compress(bytes(100 * MIB), 9)
    screen = bytearray(encode(gray, "GIF"))
    screen[6:10] = b"\xff" * 4
    jpeg = encode(white, "JPEG", progressive=True, quality=20)
    bmp = bytearray(encode(Image.new("L", (8, 8)), "BMP"))
    bmp[18:26] = b"\xff\xff\xff\x7f" * 2
    small = b64(encode(white.convert("1")))
    many = [b64(SEVEN)] * 1024
    return (
        dearest_png(),
        encode(white),
        encode(white.convert("1")),
        encode(white, "GIF"),
        encode(white.convert("RGB"), "WEBP", lossless=True),
        encode(white, "JPEG"),
        jpeg,
        jpeg + jpeg[2:] * 3,
        png(0xFFFFFFFF, 0xFFFFFFFF),
        png(65535, 65535),
        png(4096, 4096),
        png(28, 28, (b"zTXt", b"a\0\0" + text)),
        png(28, 28, *[(b"iCCP", b"a\0\0" + text)] * 8),
        bytes(screen),
        bytes(bmp),
        json.dumps({"instances": [small] * 32}).encode(),
        json.dumps({"instances": many}).encode()[:MIB],
        gzip.compress(bytes(100 * MIB)),
    )


def _bomb(rng: random.Random) -> bytes:
    return request("/predictions/mnist", rng.choice(bombs()))


# --- JSON.

_ANYTHING: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, -0.0, 256, 2**31, 2**63, 10**30, 10**400, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "NaN", "\0", "\ud800", "\U0001f600"),
    *("a" * 300, [], {}, [[]], [None], [[0, 1]], {"b64": ""}, {"b64": None}, {"a": {"b": []}}),
    json.loads("[" * 60 + "]" * 60),
)


def _documents() -> list[tuple[str, Any]]:
    pixels = [[0] * 28] * 14 + [[255] * 28] * 14
    xor = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1]}
    digit = {"name": "x", "shape": [1, 28, 28], "datatype": "UINT8", "data": pixels}
    more = {"id": "1", "parameters": {"a": 1}, "outputs": [{"name": "label"}]}
    return [
        ("/predictions/xor", {"instances": [[0, 1], [1, 1]]}),
        ("/v1/models/xor:predict", {"instances": [[0.25, 1]]}),
        ("/explanations/xor", {"instances": [[0, 1]]}),
        ("/predictions/mnist", {"instances": [pixels]}),
        ("/predictions/mnist", {"instances": [b64(SEVEN), pixels]}),
        ("/v2/models/xor/infer", {"inputs": [xor], **more}),
        ("/v2/models/mnist/infer", {"inputs": [digit]}),
        ("/predictions/xor", {"inputs": [xor], **more}),
    ]


def document(rng: random.Random) -> tuple[str, Any]:
    """A path, and a document for it in which something was replaced, left out or added."""
    path, value = rng.choice(_documents())
    for _ in range(rng.randint(0, 3)):
        value = _spoil(value, rng)
    if rng.random() < 0.1:
        path = rng.choice(_documents())[0]
    return path, value


def _spoil(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else range(len(value))
        key = rng.choice(keys)
        changed: Any = value.copy()
        what = rng.random()
        if what < 0.1:
            del changed[key]
        elif what < 0.2 and isinstance(changed, list):
            changed *= rng.choice((0, 2, 30))
        elif what < 0.3 and isinstance(changed, dict):
            changed[rng.choice(("inputs", "instances", "data", "b64", "shape", "\0"))] = rng.choice(
                _ANYTHING
            )
        else:
            changed[key] = _spoil(changed[key], rng)
        return changed
    return rng.choice(_ANYTHING)


def _json(rng: random.Random) -> bytes:
    path, value = document(rng)
    body = json.dumps(value).encode()
    return request(path, mutate(body, rng) if rng.random() < 0.3 else body)


def _nested(rng: random.Random) -> bytes:
    depth = rng.choice((20, 500, 1000, 5000))
    begin, end = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b'{"instances":[', b"]}")))
    body = begin * depth + (end * depth if rng.random() < 0.7 else b"")
    path = rng.choice(("/predictions/xor", "/predictions/mnist", "/v2/models/xor/infer"))
    return request(path, b'{"instances": %s}' % body if rng.random() < 0.5 else body)


@functools.cache
def _huge_documents() -> tuple[bytes, ...]:
    return (
        b"[" * MIB,
        b'{"a":' * (MIB // 5),
        b'{"instances": [%s]}' % b",".join([b"[0,1]"] * 150_000),
        b'{"instances": [[%s, 1]]}' % (b"9" * (MIB - 40)),
        b'{"instances": [["%s", 1]]}' % (b"\\u0041" * (MIB // 6 - 10)),
        b'{"instances": [[0, 1]], %s "z": 0}'
        % b"".join(b'"%d": 0, ' % number for number in range(70_000)),
        json.dumps({"instances": [[[0.1234567] * 28] * 28] * 120}).encode(),
    )


def _huge(rng: random.Random) -> bytes:
    path = rng.choice(("/predictions/xor", "/predictions/mnist", "/v2/models/xor/infer"))
    return request(path, rng.choice(_huge_documents())[:MIB])


def _number(rng: random.Random) -> bytes:
    """Numbers at the edges of what JSON, Python and float32 have."""
    texts = (
        *("NaN", "Infinity", "-Infinity", "nan", "1e400", "-1e400", "1e39", "3.4028235e38", "0x1"),
        *("01", "+1", ".5", "5.", "1e", "1_0", "-", "--1", "1e-400", "9" * 4301, "1" + "0" * 400),
        *("\u0661", "1e999999999", "0." + "1" * 5000, "true", "1.17549435e-38", "-0"),
    )
    body = f'{{"instances": [[{rng.choice(texts)}, {rng.choice(texts)}]]}}'.encode()
    return request("/predictions/xor", body)


def _encoding(rng: random.Random) -> Case:
    """Text in other encodings than it says or has to be in, compressed bodies."""
    path, value = document(rng)
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    codecs = (
        "utf-16",
        "utf-16-le",
        "utf-32",
        "utf-32-be",
        "utf-8-sig",
        "utf-7",
        "cp037",
        "latin-1",
    )
    body = text.encode(rng.choice(codecs), "replace")
    headers = b""
    if rng.random() < 0.4:
        body = rng.choice((gzip.compress, zlib.compress, base64.b64encode))(body)
    if rng.random() < 0.3:
        encoding = rng.choice((b"gzip", b"deflate", b"br", b"identity", b"\xff", b"gzip, gzip"))
        headers = b"Content-Encoding: " + encoding + b"\r\n"
    if rng.random() < 0.3:
        body = body[: rng.randint(0, len(body))] + rng.choice(
            (b"\xff\xfe", b"\xc0\x80", b"\xed\xa0")
        )
    return Case("encoding", request(path, body, headers))


# --- Forms and tensors.


def form(rng: random.Random) -> tuple[str, bytes]:
    """A content type and a form that may fit it."""
    boundary = rng.choice(("x", "-" * 20, "a b", "=", "x" * 70, "\xe9", "", '"'))
    content_type = f"multipart/{rng.choice(('form-data', 'mixed', ''))}; boundary={boundary}"
    if rng.random() < 0.2:
        content_type = mutate(content_type.encode("latin-1"), rng).decode("latin-1")
    line = boundary.encode("latin-1")
    names = rng.choices(("data", "body", "", "\xff", 'da"ta', "data\0", "x" * 500), k=3)
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n%s\r\n%s\r\n'
        % (
            line,
            name.encode("latin-1"),
            rng.choice((b"", b"Content-Transfer-Encoding: base64\r\n", b": :\r\n", b" \r\n")),
            rng.choice((SEVEN, b"", b"--" + line, b"\r\n--" + line, rng.randbytes(50))),
        )
        for name in names[: rng.randint(0, 3)]
    ]
    if rng.random() < 0.02:
        parts *= 40
    body = b"".join(parts) + b"--%s--\r\n" % line
    return content_type, mutate(body, rng) if rng.random() < 0.5 else body


def _form(rng: random.Random) -> bytes:
    content_type, body = form(rng)
    clean = "".join(c for c in content_type if c.isprintable())
    header = f"Content-Type: {clean}\r\n".encode("latin-1")
    return request(rng.choice(("/predictions/mnist", "/predictions/xor")), body, header)


def tensor(rng: random.Random) -> tuple[bytes, bytes]:
    """Value of the header with the length of the JSON, and a body with a binary tensor."""
    count = rng.choice((1, 1, 2, 1024, 1025, 0, -1))
    datatype = rng.choice(("FP32", "UINT8", "FP64", "BYTES", "INT64"))
    numbers = max(0, min(count, 1024)) * 2 * {"FP32": 4, "UINT8": 1}.get(datatype, 8)
    size = rng.choice((numbers, numbers, numbers + 1, 0, -1, 2**31, 2**64))
    content = rng.randbytes(max(0, numbers + rng.choice((0, 0, 0, 1, -1, 100))))
    head: dict[str, Any] = {
        "inputs": [
            {
                "name": "input",
                "shape": [count, 2],
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
        ],
        "parameters": {"binary_data_output": rng.random() < 0.5},
    }
    if rng.random() < 0.3:
        head = _spoil(head, rng)
    text = json.dumps(head).encode()
    length = len(text) + rng.choice((0, 0, 0, 0, 1, -1, len(content), 10**6))
    said = rng.choice((b"%d", b"%d", b"%d", b"%d", b" %d ", b"+%d", b"0%d", b"%d, 1", b"\xb2%d"))
    return said % length, text + content


def _tensor(rng: random.Random) -> bytes:
    length, body = tensor(rng)
    path = rng.choice(("/v2/models/xor/infer", "/predictions/xor", "/v2/models/mnist/infer"))
    return request(path, body, b"%s: %s\r\n" % (JSON_LENGTH, length))


# --- HTTP.


def _chunked(rng: random.Random) -> bytes:
    """Chunks of odd sizes with extensions and trailers, framed as they should be."""
    path, value = document(rng)
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = []
    while body:
        size = rng.choice((1, 3, 10, 500, 20_000))
        part, body = body[:size], body[size:]
        extension = rng.choice((b"", b"", b";a", b";a=b", b';a="\\"c"', b" "))
        number = rng.choice((b"%x", b"%X", b"0%x", b"000000%x")) % len(part)
        chunks.append(number + extension + b"\r\n" + part + b"\r\n")
        if len(chunks) > 200:
            body = b""
    trailer = rng.choice((b"", b"", b"X: y\r\n", b"Content-Length: 3\r\n", b"Host: b\r\n"))
    return head + b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


_PATHS = (
    *(
        "/",
        "/v2",
        "/v2/",
        "/v1/models",
        "/v1/models/mnist",
        "/v2/models/xor",
        "/openapi.json",
        "//",
    ),
    *("/v2/models/mnist/versions/1.0", "/v2/models/mnist/ready", "/predictions", "/predictions/"),
    *("/predictions/mnist/../xor", "/predictions/..%2fmodels", "/v1/models/..%2f..%2fetc/passwd"),
    *("/models", "/models?url=http://127.0.0.1/evil.mar", "/models/mnist", "/api-description"),
    *("/ping", "/metrics", "/workflows", "/wfpredict/mnist", "/predictions/mnist/1.0/extra"),
    *(
        "/predictions/mnist/9",
        "/predictions/nothing",
        "/predictions/mnist%00",
        "/%70redictions/xor",
    ),
    *(
        "/docs/../../etc/passwd",
        "/static/..%2f..%2fetc/passwd",
        "/static/%2e%2e/page.py",
        "/docs/x",
    ),
    *("/v2/models/xor%2Fversions/infer", "/v2/models//infer", "/v1/models/xor:predict:predict"),
    *("/predictions/xor?a=b", "/predictions/xor;a=b", "/livez", "/reload", "/admin.sock"),
    *("/v2/models/" + "x" * 2000 + "/infer", "/" + "a/" * 1000, "/%", "/%zz", "/%c0%ae%c0%ae/"),
    *("/explanations/mnist/1.0", "/v1/models/xor:explain", '/predictions/"', "/predictions/<b>"),
)
_METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "POKE", "post")
_REFUSED_PATH = frozenset({400, 404, 405, 413, 415})


def _path(rng: random.Random) -> Case:
    method, path = rng.choice(_METHODS), rng.choice(_PATHS)
    body = rng.choice((b"", b'{"instances": [[0, 1]]}'))
    return Case("path", request(path, body, method=method), method, _REFUSED_PATH)


def _headers(rng: random.Random) -> Case:
    """Up to 90 headers of up to 12 kB in all, and such as steer what is behind the door."""
    names = (
        *("Explain", "X-Protocol", "X-Content-Type", "X-Request-Start", "X-Request-Id", "Expect"),
        *("X-Forwarded-For", "Authorization", "Cookie", "Upgrade", "TE", "Connection", "Range"),
        *("Accept-Encoding", "If-None-Match", "Content-Type", "Content-MD5", "Via", "Forwarded"),
        *("X-Amzn-SageMaker-Custom-Attributes", "ts_request_sequence_id", "Max-Forwards", "X"),
    )
    values = (
        *(
            b"",
            b"True",
            b"v2",
            b"100-continue",
            b"x",
            b"close",
            b"keep-alive",
            b"gzip, br",
            b"\xff",
        ),
        *(b"a" * 100, b"a" * 3000, b"'; DROP TABLE", b"${jndi:ldap://127.0.0.1/a}", b"{{7*7}}"),
        *(
            b"t=99999999999999999999",
            b"t=nan",
            b"-1",
            b"\t",
            b'"',
            b"%0d%0aX: y",
            b"a\x0bb",
            b"a\x01",
        ),
    )
    lines, size = [], 0
    for _ in range(rng.choice((1, 2, 5, 90))):
        name = rng.choice(names).encode()
        value = rng.choice(values)
        # These are for test_hostile_framing.py, which knows how each has to be answered.
        if name in (b"Upgrade", b"Connection") or size + len(value) > 12_000:
            continue
        lines.append(name + b": " + value + b"\r\n")
        size += len(name) + len(value) + 4
    path = rng.choice(("/predictions/xor", "/v2/models/xor/infer", "/v2/health/live", "/v2x"))
    method = "GET" if path in ("/v2/health/live", "/v2x") else "POST"
    wire = request(path, b'{"instances": [[0, 1]]}', b"".join(lines), method=method)
    return Case("headers", wire, method, _REFUSED_PATH)


def _malformed(rng: random.Random) -> Case:
    """What is not HTTP, and is refused as such."""
    body = b'{"instances": [[0, 1]]}'
    good = request("/predictions/xor", body)
    spoilt = rng.choice(
        (
            rng.randbytes(rng.randint(8, 200)).replace(b"\n", b"") + b"\r\n\r\n",
            good.replace(b" HTTP/1.1", rng.choice((b"", b" HTTP/x", b" HTCPCP/1.0", b"  "))),
            good.replace(b"Content-Length: 23", b"Content-Length: %d, 1" % rng.randint(2, 99)),
            request("/predictions/xor", body, b"Content-Length: %d\r\n" % rng.randint(24, 99)),
            request(
                "/predictions/xor",
                body,
                b"X" + rng.choice((b" ", b"\0", b"(", b"\xe9")) + b": y\r\n",
            ),
            request("/predictions/xor", body, b"X: y\r\n" * rng.randint(101, 400)),
            request("/predictions/xor", body, b"X: %s\r\n" % (b"y" * rng.randint(17_000, 60_000))),
            request("/" + "x" * 20_000, body),
            request("/predictions/x or", body),
            good.replace(b"Content-Length: 23", b"Transfer-Encoding: chunked", 1)[:-23]
            + rng.choice(
                (b"zz\r\n", b"-1\r\n", b"\r\n\r\n", b"17\r\nshort\r\n0\r\n\r\n" + b"0" * 30)
            ),
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(32) + b"\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        )
    )
    return Case("malformed", spoilt, statuses=frozenset({400, 422}), is_alone=True)


_KINDS: dict[str, tuple[float, Callable[[random.Random], bytes | Case]]] = {
    "picture": (28, _picture),
    "pictures in JSON": (8, _pictures_in_json),
    "polyglot": (4, _polyglot),
    "bomb": (0.2, _bomb),
    "JSON": (20, _json),
    "nested JSON": (3, _nested),
    "huge JSON": (0.2, _huge),
    "number": (5, _number),
    "encoding": (5, _encoding),
    "form": (6, _form),
    "binary tensor": (8, _tensor),
    "chunked": (4, _chunked),
    "path": (4, _path),
    "headers": (4, _headers),
    "malformed": (4, _malformed),
}


if __name__ == "__main__":
    sys.stdout.buffer.write(make(int(sys.argv[1]), int(sys.argv[2])).wire)
