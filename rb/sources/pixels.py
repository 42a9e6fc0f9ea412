"""The bytes of an image file to RGB pixels: JPEG, PNG or WebP, decoded strictly. Used wherever an image is read.

Pillow passes over most damage inside a JPEG and fills the rest with grey, so JPEGs are decoded by simplejpeg, which reports every warning
of libjpeg-turbo; its pixels are Pillow's, bit by bit. What cannot be seen: a few altered bits that still form a valid code. A conversion
to RGB that would lose range or transparency is done right or refused.

Cameras and phones store a photo as the sensor saw it and say in EXIF how to turn it. ``decode_image`` gives pixels as stored, as data sets
count them; ``decode_upright`` turns them, as a viewer does. Which of them the sizes and boxes of a set mean, nobody can see: a set with such
images is refused unless that is said (``size_in_set``, ``decode_in_set``).
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from rb.core.stand_ins import stand_in
from rb.core.strict_json import FormatError

AS_STORED, AS_UPRIGHT = "stored", "upright"
EXIF_CHOICES = (AS_UPRIGHT, AS_STORED)  # which pixels the sizes and boxes of a set refer to
UPRIGHT = 1  # EXIF orientation of pixels that are upright as stored
# EXIF orientation -> what makes the stored pixels upright (EXIF 2.32, table 6: 1 to 8; Pillow turns counter-clockwise).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STATES_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")  # where Pillow looks for it
MAX_PIXELS = 89_478_485  # Pillow warns from here on and only refuses twice as many: a 20 kB file can claim gigabytes
# A photo has 2 to 20 pixels a byte. A file that claims many more unpacks a flat picture into memory that its size does not announce.
_SMALL_PIXELS, _PIXELS_PER_BYTE = 12_000_000, 50
_FORMATS = ("JPEG", "PNG", "WEBP")
_CONVERTED = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)
_PNG_TEXTS_WITH_ORIENTATION = (b"Raw profile type exif", b"XML:com.adobe.xmp")


class ImageError(FormatError):
    """An image that cannot be used; the message says why."""


class OrientationError(ImageError):
    """An image that viewers turn, in a set of which nobody said whether its sizes and boxes mean the upright image."""


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) from the header alone; ``ImageError`` if there is no readable header or too many pixels."""
    return _open(data, where).size


def image_orientation(data: bytes, where: str) -> int:
    """EXIF orientation 1 to 8; ``UPRIGHT`` where none is stated. ``ImageError`` as of ``image_size``.

    Reads the header alone, but a PNG that states one to its end, where it may stand.
    """
    return _orientation(_open(data, where), io.BytesIO(data))


def _orientation(image: Image.Image, stream: BinaryIO) -> int:
    if image.format == "PNG" and not _png_states_orientation(stream):
        return UPRIGHT
    return orientation_of(image)


def _png_states_orientation(stream: BinaryIO) -> bool:
    """Whether a chunk of a PNG may state one; Pillow would decode all pixels to look for it. The stream stays where it is."""
    before, place, found = stream.tell(), 8, False
    while not found and stream.seek(place) == place and len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        text = stream.read(32) if kind in (b"tEXt", b"zTXt", b"iTXt") else b""
        found = kind == b"eXIf" or text.startswith(_PNG_TEXTS_WITH_ORIENTATION)
        place += 12 + length
    stream.seek(before)
    return found


def size_in_set(data: bytes, where: str, exif: str | None) -> tuple[int, int]:
    """(width, height) of an image as the records of its set state it, from its header alone.

    Args:
        exif: ``upright`` or ``stored``: which pixels sizes and boxes refer to; none where nobody said.

    Raises:
        OrientationError: nobody said, and the image has an EXIF orientation.
    """
    return _size_in_set(io.BytesIO(data), len(data), where, exif)


def size_of_file(path: Path, exif: str | None) -> tuple[int, int]:
    """``size_in_set`` of a file, of which only the header's bytes are read. ``OSError``: it cannot be read."""
    with path.open("rb") as file:
        return _size_in_set(file, path.stat().st_size, str(path), exif)


def _size_in_set(stream: BinaryIO, length: int, where: str, exif: str | None) -> tuple[int, int]:
    image = _open_stream(stream, length, where)
    width, height = image.size
    orientation = _orientation(image, stream)
    if orientation == UPRIGHT or exif == AS_STORED:
        return width, height
    if exif is None:
        raise OrientationError(
            f"{where}: EXIF orientation {orientation}: stored as {width} x {height}, and turned by viewers. Say which pixels sizes and boxes "
            "refer to: `--exif upright` (as a viewer shows them) or `--exif stored`"
        )
    return (height, width) if orientation > 4 else (width, height)


def decode_in_set(data: bytes, where: str, exif: str | None, size: tuple[int, int] | None = None) -> Image.Image:
    """The whole image in RGB as its set means it; ``exif`` as of ``size_in_set`` (none: as stored), ``size`` as of ``decode_image``."""
    if exif != AS_UPRIGHT:
        return decode_image(data, where, size)
    image, _ = decode_upright(data, where)
    if size is not None and image.size != size:
        raise ImageError(_other_size(where, size, image.size))
    return image


def orientation_of(image: Image.Image) -> int:
    """EXIF orientation 1 to 8 of an image that Pillow opened; ``UPRIGHT`` where none is stated, or not in a way that can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF, which viewers pass over too
            stated = image.getexif().get(ExifTags.Base.Orientation, UPRIGHT)
        return int(stated) if stated in _TURNS else UPRIGHT
    except (*_DAMAGE, KeyError, TypeError, struct.error):
        return UPRIGHT


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Stored pixels as they look upright. Width and height exchange for the orientations 5 to 8."""
    if orientation not in _TURNS:
        return image
    upright = image.transpose(_TURNS[orientation])
    # The copy must not say that it is still to be turned.
    upright.info = {key: value for key, value in image.info.items() if key not in _STATES_ORIENTATION}
    return upright


def decode_upright(data: bytes, where: str) -> tuple[Image.Image, int]:
    """(the whole image in RGB as a viewer shows it, the EXIF orientation of the stored pixels). ``ImageError`` as of ``decode_image``."""
    orientation = image_orientation(data, where)
    return turned(decode_image(data, where), orientation), orientation


def is_animated(data: bytes, where: str) -> bool:
    """Whether an image file holds several frames, from its header. ``ImageError`` as of ``image_size``."""
    return bool(getattr(_open(data, where), "is_animated", False))


def decode_with_mask(data: bytes, where: str) -> tuple[Image.Image, tuple[int, int, int, int] | None]:
    """(the upright image in RGB, its colours as stored behind a mask; x1 y1 x2 y2 in pixels of what its alpha channel shows).

    No box where there is no alpha channel, where all of it shows, or nothing does. ``ImageError`` as of ``decode_image``.
    """
    image, orientation = _open(data, where), image_orientation(data, where)
    if image.mode != "RGBA":
        return decode_upright(data, where)[0], None
    decode_image(data, where)  # refuses what is damaged
    upright = turned(image, orientation)
    box = upright.getchannel("A").getbbox()
    return upright.convert("RGB"), None if box == (0, 0, *upright.size) else box


def decode_image(data: bytes, where: str, size: tuple[int, int] | None = None) -> Image.Image:
    """The whole image in RGB. ``size``: the (width, height) that its record claims, an error if the image has another.

    Raises:
        ImageError: unreadable, cut short, damaged, too many pixels, another size than claimed, of a mode that has no right form in RGB.
    """
    image = _open(data, where)
    if size is not None and image.size != size:
        raise ImageError(_other_size(where, size, image.size))
    try:
        if data.startswith(b"\xff\xd8"):
            image = _strict_jpeg(data, image)
        image.load()
        return to_rgb(image, where)
    except ImageError:
        raise
    except _DAMAGE as error:
        raise ImageError(
            f"{where}: the image is damaged ({error}); get the file again, or save it again if it looks right"
        ) from None


def to_rgb(image: Image.Image, where: str) -> Image.Image:
    """``image`` in RGB with all its range: 16-bit grey is scaled to 8 bits, what is transparent shows white, as in a viewer.

    Raises:
        ImageError: whole numbers of 32 bits or floats, whose range nobody states; a mode without a form in RGB.
    """
    if image.mode.startswith("I;16"):
        if "transparency" in image.info:
            raise ImageError(f"{where}: 16-bit grey with a transparent value; save it with 8 bits a channel")
        grey = np.asarray(image).astype(np.float64) / 257  # 65535 becomes 255
        return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if layers.getchannel("A").getextrema() != (255, 255):
            return Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    elif image.mode not in _CONVERTED:
        raise ImageError(
            f"{where}: pixels of mode {image.mode} have no certain form in 8-bit RGB; save the image with 8 bits a channel"
        )
    return image if image.mode == "RGB" else image.convert("RGB")


def _other_size(where: str, said: tuple[int, int], found: tuple[int, int]) -> str:
    return f"{where}: the record says {said[0]} x {said[1]} pixels, the image has {found[0]} x {found[1]}"


def _open(data: bytes, where: str) -> Image.Image:
    return _open_stream(io.BytesIO(data), len(data), where)


def _open_stream(stream: BinaryIO, length: int, where: str) -> Image.Image:
    """The image that begins at a stream's start, of which the header is read; ``length``: of the whole, in bytes."""
    if not length:
        raise ImageError(f"{where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of damaged EXIF, which viewers pass over too
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(stream, formats=_FORMATS)
    except UnidentifiedImageError:  # its text holds a memory address
        stream.seek(0)
        begin = stream.read(1024)
        other = stand_in(begin)
        raise ImageError(
            f"{where}: not a readable JPEG, PNG or WebP image; it starts with {begin[:8]!r}{f': {other}' if other else ''}"
        ) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{where}: not a readable JPEG, PNG or WebP image ({error})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{where}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS} allowed; shrink the image"
        )
    if image.width * image.height > max(_SMALL_PIXELS, _PIXELS_PER_BYTE * length):
        raise ImageError(
            f"{where}: claims {image.width} x {image.height} pixels in {length:,} bytes, more than {_PIXELS_PER_BYTE} a byte; shrink the image"
        )
    return image


def _strict_jpeg(data: bytes, image: Image.Image) -> Image.Image:
    """A sound JPEG in RGB; CMYK as it is, checked, for Pillow to convert (simplejpeg rounds otherwise)."""
    import simplejpeg  # only here: checks of a machine without data (launch/gpu_check.sh) go without it

    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    if (width, height) != image.size:
        raise ValueError(f"its headers claim {image.width} x {image.height} and {width} x {height} pixels")
    if colours in ("CMYK", "YCCK"):
        simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        return image
    return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
