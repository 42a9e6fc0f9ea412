"""The bytes of an image file to RGB pixels: JPEG, PNG or WebP, decoded strictly. Used wherever an image is read.

Pillow passes over most damage inside a JPEG and fills the rest with grey, so JPEGs are decoded by simplejpeg, which reports every warning
of libjpeg-turbo; its pixels are Pillow's, bit by bit. What cannot be seen: a few altered bits that still form a valid code. A conversion
to RGB that would lose range or transparency is done right or refused.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from rb.core.strict_json import FormatError

MAX_PIXELS = 89_478_485  # Pillow warns from here on and only refuses twice as many: a 20 kB file can claim gigabytes
_FORMATS = ("JPEG", "PNG", "WEBP")
_CONVERTED = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, MemoryError)


class ImageError(FormatError):
    """An image that cannot be used; the message says why."""


def image_size(data: bytes, where: str) -> tuple[int, int]:
    """(width, height) from the header alone; ``ImageError`` if there is no readable header or too many pixels."""
    return _open(data, where).size


def decode_image(data: bytes, where: str, size: tuple[int, int] | None = None) -> Image.Image:
    """The whole image in RGB. ``size``: the (width, height) that its record claims, an error if the image has another.

    Raises:
        ImageError: unreadable, cut short, damaged, too many pixels, another size than claimed, of a mode that has no right form in RGB.
    """
    image = _open(data, where)
    if size is not None and image.size != size:
        raise ImageError(
            f"{where}: the record says {size[0]} x {size[1]} pixels, the image has {image.width} x {image.height}"
        )
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


def _open(data: bytes, where: str) -> Image.Image:
    if not data:
        raise ImageError(f"{where}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:  # its text holds a memory address
        raise ImageError(f"{where}: not a readable JPEG, PNG or WebP image; it starts with {data[:8]!r}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"{where}: not a readable JPEG, PNG or WebP image ({error})") from None
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"{where}: claims {image.width} x {image.height} pixels, more than {MAX_PIXELS} allowed; shrink the image"
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
