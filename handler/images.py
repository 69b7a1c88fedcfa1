"""Picture files: what one costs to decode, told from its header, and its pixels."""

import io
import struct
import zlib
from array import array

from PIL import Image, UnidentifiedImageError

from handler.digits import SIDE, to_mnist
from handler.errors import PayloadTooLargeError, RequestError, UnsupportedMediaTypeError
from handler.payload import Numbers

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
MAX_SIDE = 4096
# Encoders write about ten. Each takes up to 6 ms for 4096x4096 pixels and as little as 35 bytes, so
# that a file of 1 MiB could hold a worker for minutes.
_MAX_SCANS = 32

# Estimates of work, in bytes of pixels; one takes 4 ns on one core (EPYC, Pillow 12.3), at worst 8,
# to decode and to bring to MNIST's form. 4096x4096 pixels take in ms, at worst: PNG of one bit 30,
# gray 80, RGB 230, RGBA 310, 16-bit RGBA 580; JPEG 15, progressive 95, with 32 scans 200; GIF 110;
# WebP 190.
_PNG_CHANNELS = {"1": 1, "L": 1, "I;16": 1, "RGB": 3}
_OTHER_CHANNELS = 4  # palettes, and gray with alpha, become RGBA on the way
_LEAST_WORK = 1 << 16  # for calls that cost the same at any size
# Metadata costs up to 200 ns a byte of the file: a JPEG's segments, Exif's entries.
_WORK_A_BYTE = 50

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_CHUNK = struct.Struct(">I4s")
_PNG_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return _PNG_CHUNK.pack(len(content), kind) + content + struct.pack(">I", checksum)


# Depth 8, gray; deflate, its only filter method, not interlaced.
_PLAIN_HEADER = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 0, 0, 0, 0)
_PLAIN_BEGIN = _PNG_SIGNATURE + _png_chunk(b"IHDR", _PLAIN_HEADER)
_PLAIN_END = _png_chunk(b"IEND", b"")

# Pixels are decoded into this image, and so into its buffer. A new image for each picture, and its
# bytes out of it, would take 11 us instead of 5. A worker decodes in one thread.
_PLAIN_PIXELS = bytearray(SIDE * SIDE)
_PLAIN_IMAGE = Image.frombuffer("L", (SIDE, SIDE), _PLAIN_PIXELS, "raw", "L", 0, 1)  # type: ignore[arg-type]

# `Picture` checks each side before any pixel is decoded, which is stricter than Pillow's own limit
# and, unlike it, neither warns nor stops other sizes.
Image.MAX_IMAGE_PIXELS = None


def decode_plain(data: bytes | bytearray) -> "Numbers | None":
    """Decode a PNG of 28x28, 8-bit gray, not interlaced, whose pixels are one chunk.

    Encoders write an MNIST digit so. Pillow takes a fifth of the time for the pixels alone that it
    takes for the file around them too.

    Returns:
        uint8, 28 rows of 28; None for any other picture.

    Raises:
        RequestError: it is blank.
    """
    end = len(data) - len(_PLAIN_END)
    if not (data.startswith(_PLAIN_BEGIN) and data.endswith(_PLAIN_END)):
        return None
    length, kind = _PNG_CHUNK.unpack_from(data, len(_PLAIN_BEGIN))
    begin = len(_PLAIN_BEGIN) + _PNG_CHUNK.size
    if kind != b"IDAT" or begin + length + 4 != end:
        return None
    if zlib.crc32(data[begin - 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
        return None
    try:
        _PLAIN_IMAGE.frombytes(data[begin : end - 4], "zip", ("L", 0))
    except ValueError:
        return None
    return _not_blank(_PLAIN_PIXELS)


class Picture:
    """A picture of any supported format and size: its header has been read, no pixel decoded.

    Args:
        data: PNG, JPEG, BMP, GIF (its first frame) or WebP.

    Attributes:
        pixels: width times height.
        work: estimate of what `decode` takes, in units of 4 ns.

    Raises:
        UnsupportedMediaTypeError: none of those formats.
        PayloadTooLargeError: over 4,096 pixels a side, or over 32 scans.
        RequestError: the header is truncated or corrupt.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        try:
            file = io.BytesIO(_without_metadata(data))
            image = Image.open(file, formats=FORMATS)
        except UnidentifiedImageError:
            raise UnsupportedMediaTypeError(
                f"not a supported image: expected one of {', '.join(FORMATS)}"
            ) from None
        except (RequestError, MemoryError):
            raise
        except (IndexError, struct.error):
            raise RequestError("the image cannot be read: it is truncated") from None
        except Exception as error:  # noqa: BLE001 (a header can fail in any way)
            raise RequestError(f"the image cannot be read: {error}") from None
        _check_size(*image.size)
        decoder = str(image.tile)  # its name and arguments
        bytes_per_pixel = _OTHER_CHANNELS
        if image.format == "PNG":
            has_16_bits = ";16B" in decoder
            channels = _PNG_CHANNELS.get(image.mode, _OTHER_CHANNELS)
            bytes_per_pixel = channels * (2 if has_16_bits else 1)
        elif image.format == "JPEG":
            # Not an exact count, as a thumbnail has scans of its own.
            scans = data.count(b"\xff\xda")
            if scans > _MAX_SCANS:
                raise PayloadTooLargeError(
                    f"the JPEG image has {scans} scans; the limit is {_MAX_SCANS}"
                )
        elif image.format == "BMP" and "bmp_rle" in decoder:
            # Pillow decodes it in Python: up to 1.2 s for 4096x4096 pixels.
            raise UnsupportedMediaTypeError("not a supported image: the BMP is run-length encoded")
        self._image = image
        self.pixels = image.width * image.height
        self.work = max(_LEAST_WORK, self.pixels * bytes_per_pixel, len(data) * _WORK_A_BYTE)

    def decode(self) -> Numbers:
        """Decode the pixels and bring them to MNIST's form, in which 28x28 grayscale already is.

        Returns:
            uint8, 28 rows of 28, ink bright on 0.

        Raises:
            RequestError: truncated, corrupt, or blank.
            MemoryError: there is no memory for the pixels.
        """
        image = self._image
        try:
            is_opaque = not image.has_transparency_data
            is_gray = image.mode in ("1", "L")  # before a JPEG is drafted
            image.draft("L", None)  # a JPEG's luminance alone, which takes a third of the time
            image.load()
            orientation = image.getexif().get(0x0112)
        except MemoryError:  # the image may be in order
            raise
        except Exception as error:  # noqa: BLE001 (decoders raise nearly every built-in exception)
            raise RequestError(f"the {image.format} image cannot be decoded: {error}") from None
        if is_gray and is_opaque and image.size == (SIDE, SIDE):
            return _not_blank((image if image.mode == "L" else image.convert("L")).tobytes())
        return array("B", to_mnist(image, orientation))


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE:
        raise PayloadTooLargeError(
            f"the image is {width}x{height}; the limit is {MAX_SIDE} pixels a side"
        )


def _not_blank(pixels: bytes | bytearray) -> Numbers:
    """A copy of the pixels.

    Raises:
        RequestError: they are all alike.
    """
    if pixels.count(pixels[0]) == len(pixels):
        raise RequestError("the image is blank")
    return array("B", pixels)


def _without_metadata(data: bytes | bytearray) -> bytes | bytearray:
    """Drop what a PNG or GIF has besides pixels, palette, transparency and orientation.

    Pillow inflates every profile and text of a PNG (1 MiB of profiles took 1.9 s), and joins the
    parts of a GIF's comment again for each (1.1 s).
    """
    if data.startswith(_PNG_SIGNATURE):
        return _needed_of_png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _needed_of_gif(data)
    return data


def _needed_of_png(data: bytes | bytearray) -> bytes:
    at = len(_PNG_SIGNATURE)
    kept = [data[:at]]
    while at + _PNG_CHUNK.size <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        end = at + _PNG_CHUNK.size + length + 4
        if kind in _PNG_NEEDED:
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def _needed_of_gif(data: bytes | bytearray) -> bytes:
    has_palette, size = data[10] & 0x80, data[10] & 7
    at = 13 + (3 << size + 1 if has_palette else 0)
    kept = [data[:at]]
    while data[at] != ord(","):  # begins the first frame
        begin = at
        at += 1
        if data[begin] == ord("!"):
            at += 1
            while data[at]:
                at += 1 + data[at]
            at += 1
            if data[begin + 1] == 0xF9:  # a graphic control extension, which has the transparency
                kept.append(data[begin:at])
    # Pillow may fill as much memory as the frame asks for while it reads the header: up to 4 GB.
    left, top, width, height = struct.unpack_from("<4H", data, at + 1)
    _check_size(left + width, top + height)
    return b"".join([*kept, data[at:]])
