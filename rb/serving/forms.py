"""What a request may hold: its fields, their limits, how a body becomes them. Every refusal names its field.

Bodies are read into memory, never to disk, up to ``Limits.body_bytes``. JSON, and for images a form with an upload.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np
from fastapi import Request
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from rb.core.modality import IMAGE_REGION, MODALITIES
from rb.core.strict_json import FormatError, parse
from rb.sources.cloud_files import parse_cloud
from rb.sources.pixels import decode_upright, decode_with_mask, image_size, is_animated

Numbers = list[FiniteFloat]
UNPACKED = 4  # a file of points may unpack to so many times the bytes of a body
JSON, FORM = "application/json", "multipart/form-data"


@dataclass(frozen=True)
class Limits:
    """What one request may ask.

    Attributes:
        body_bytes: of a whole body.
        pixels: of an image.
        points: of a cloud.
        boxes: of a source.
        deadline_s: longest wait for an answer, in seconds.
    """

    body_bytes: int = 16 << 20
    pixels: int = 40_000_000
    points: int = 200_000
    boxes: int = 64
    deadline_s: float = 60.0


class Refused(Exception):  # noqa: N818 (it is no fault of the program)
    """A request that cannot be answered: HTTP status, what is wrong, and the field where there is one."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.field = status, message, field


@dataclass(frozen=True)
class Upload:
    """A file in a form, in memory. Of its sender's name only the extension counts."""

    data: bytes
    extension: str


class Fields(BaseModel):
    """The fields of a body. ``upload``: the one that a form brings as a file, and what stands for it then."""

    upload: ClassVar[tuple[str, Any] | None] = None


Body = TypeVar("Body", bound=Fields)


class Strict(Fields):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class Decoding(Strict):
    """How captions are searched; what is left out is as in the training run."""

    num_beams: int | None = Field(None, ge=1, le=10, description="beams; 1 is greedy")
    max_new_tokens: int | None = Field(None, ge=1, le=64, description="longest caption, in tokens")
    min_new_tokens: int | None = Field(None, ge=0, le=64, description="shortest caption, in tokens")
    length_penalty: float | None = Field(
        None, ge=-5, le=5, description="exponent of the length that scores are divided by"
    )


class _Common(Strict):
    model: str | None = Field(None, max_length=200, description="a name of /v1/models; by default the first")
    decoding: Decoding = Field(default_factory=lambda: Decoding.model_validate({}))
    prompt: str | None = Field(None, max_length=500, description="text that the caption goes on from")
    deadline_s: float | None = Field(None, gt=0, le=600, description="longest wait in seconds; afterwards 504")


class Regions(_Common):
    """An image and boxes in it; without boxes the whole image."""

    upload = ("image", "")
    image: str = Field(description="JPEG, PNG or WebP as base64, or as a data: URL")
    boxes: list[Annotated[Numbers, Field(min_length=4, max_length=4)]] | None = Field(
        None, min_length=1, description="x1, y1, x2, y2 of the upright image"
    )
    box_format: Literal["pixels", "normalised"] = Field("pixels", description="normalised: divided by width and height")


Rows = Annotated[
    list[Annotated[Numbers, Field(min_length=3, max_length=6)]],
    Field(min_length=1, description="rows of x, y, z or x, y, z, red, green, blue"),
]


class Points(Strict):
    """A cloud alone."""

    upload = ("points", [[0.0, 0.0, 0.0]])
    points: Rows


class Clouds(_Common):
    """A cloud and boxes in it; without boxes the whole cloud."""

    upload = ("points", [[0.0, 0.0, 0.0]])
    points: Rows
    boxes: list[Annotated[Numbers, Field(min_length=6, max_length=6)]] | None = Field(
        None, min_length=1, description="min x, y, z, max x, y, z"
    )
    box_format: Literal["metres", "normalised"] = Field("metres", description="metres: the cloud's own units")


class Embeddings(Strict):
    """Boxes of an image in the space in which ITC compares inputs with texts; or texts in the space of a modality."""

    upload = ("image", "")
    model: str | None = Field(None, max_length=200)
    image: str | None = Field(None, description="as of /v1/regions")
    boxes: list[Annotated[Numbers, Field(min_length=4, max_length=4)]] | None = Field(None, min_length=1)
    box_format: Literal["pixels", "normalised"] = "pixels"
    texts: list[Annotated[str, Field(min_length=1, max_length=1000)]] | None = Field(None, min_length=1, max_length=64)
    modality: str = Field(IMAGE_REGION, max_length=40, description=f"of the texts: {', '.join(MODALITIES)}")
    deadline_s: float | None = Field(None, gt=0, le=600)


async def body_of(request: Request, kind: type[Body], limits: Limits) -> tuple[Body, Upload | None]:
    """(the fields of a request, the file where a form brought one). ``Refused``: 400, 413, 415, 422."""
    sent = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sent == JSON:
        data = await _bytes_of(request, limits)
        try:
            return kind.model_validate_json(data), None
        except ValidationError as error:
            raise _named(error) from None
    if sent == FORM and kind.upload is not None:
        return await _form_of(request, kind, limits)
    known = JSON if kind.upload is None else f"{JSON} or {FORM}"
    raise Refused(415, f"content-type {sent[:80]!r}: send {known}", "content-type")


async def _bytes_of(request: Request, limits: Limits) -> bytes:
    data = bytearray()
    try:
        async for part in request.stream():
            data += part
            if len(data) > limits.body_bytes:
                raise Refused(413, f"the body has more than {limits.body_bytes:,} bytes", "body")
    except ClientDisconnect:
        raise Refused(400, "the connection ended before the body", "body") from None
    return bytes(data)


class _InMemory(MultiPartParser):
    """Uploads stay in memory: the body's bytes are bounded before."""

    spool_max_size = 1 << 40


async def _form_of(request: Request, kind: type[Body], limits: Limits) -> tuple[Body, Upload | None]:
    assert kind.upload is not None
    field, stand_in = kind.upload
    data = await _bytes_of(request, limits)

    async def stream() -> Any:
        yield data

    try:
        form = await _InMemory(request.headers, stream(), max_files=1, max_fields=20, max_part_size=1 << 20).parse()
    except (MultiPartException, UnicodeDecodeError, KeyError, ValueError) as error:
        raise Refused(400, f"not a readable form ({error})"[:300], "body") from None
    fields: dict[str, Any] = {}
    upload = None
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != field:
                raise Refused(422, f"{name[:80]}: only the field {field} is an upload", name[:80])
            upload, fields[field] = Upload(await value.read(), PurePath(value.filename or "").suffix), stand_in
        elif name in fields:
            raise Refused(422, f"{name[:80]}: given twice", name[:80])
        else:
            fields[name] = value
    await form.close()
    for name in ("boxes", "decoding", "texts", "deadline_s", "points"):
        if isinstance(fields.get(name), str):
            try:
                fields[name] = parse(fields[name], name, "write it as JSON")
            except FormatError as error:
                raise Refused(422, str(error), name) from None
    try:
        return kind.model_validate(fields), upload
    except ValidationError as error:
        raise _named(error) from None


def _named(error: ValidationError) -> Refused:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"])) or "body"
    return Refused(422, f"{field}: {first['msg']}"[:500], field[:200])


def picture(given: str, upload: Upload | None, limits: Limits, field: str = "image") -> Image.Image:
    """The upright image in RGB of an upload, of base64 or of a data: URL. ``Refused`` 400 for another URL, 422 for what is no image."""
    data = image_bytes(given, field) if upload is None else upload.data
    _check_image(data, limits, field)
    try:
        return decode_upright(data, field)[0]
    except FormatError as error:
        raise Refused(422, str(error), field) from None


def masked_picture(data: bytes, limits: Limits, field: str) -> tuple[Image.Image, tuple[int, int, int, int] | None]:
    """As ``picture``, and the bounding box of its alpha mask where it has one."""
    _check_image(data, limits, field)
    try:
        return decode_with_mask(data, field)
    except FormatError as error:
        raise Refused(422, str(error), field) from None


def image_bytes(given: str, field: str) -> bytes:
    """The bytes behind base64 or a data: URL."""
    head, comma, rest = given.partition(",")
    if head[:5].lower() == "data:":
        if not comma or not head.lower().endswith(";base64"):
            raise Refused(400, f"{field}: a data: URL must be data:image/...;base64,...", field)
        given = rest
    elif "://" in given[:40]:
        raise Refused(
            400,
            f"{field}: is a URL; this server fetches nothing, send the image itself as base64 or a data: URL",
            field,
        )
    try:
        return base64.b64decode(given, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{field}: is not base64", field) from None


def _check_image(data: bytes, limits: Limits, field: str) -> None:
    try:
        width, height = image_size(data, field)
        if is_animated(data, field):
            raise Refused(422, f"{field}: is animated; send one frame", field)
    except FormatError as error:
        raise Refused(422, str(error), field) from None
    if width * height > limits.pixels:
        raise Refused(
            413, f"{field}: {width} x {height} pixels are more than {limits.pixels:,}; shrink the image", field
        )


def cloud(rows: list[Numbers], upload: Upload | None, limits: Limits) -> NDArray[np.float32]:
    """A cloud as [N, 3 | 6] float32, from numbers or from a file of a kind that ``rb caption`` reads."""
    if upload is not None:
        try:
            found = parse_cloud(upload.data, upload.extension, "points", UNPACKED * limits.body_bytes).points
        except ValueError as error:
            raise Refused(422, str(error), "points") from None
        _check_count(len(found), limits)
        return found
    _check_count(len(rows), limits)
    widths = {len(row) for row in rows}
    if widths not in ({3}, {6}):
        raise Refused(422, f"points: rows have {sorted(widths)} numbers; all must have 3, or all 6", "points")
    with np.errstate(over="ignore"):
        return np.asarray(rows, dtype=np.float64).astype(np.float32)


def _check_count(points: int, limits: Limits) -> None:
    if points > limits.points:
        raise Refused(413, f"points: {points:,} in a cloud of at most {limits.points:,}; thin the cloud", "points")


def check_boxes(boxes: list[Numbers] | None, limits: Limits) -> None:
    """``Refused`` where there are too many."""
    if boxes is not None and len(boxes) > limits.boxes:
        raise Refused(422, f"boxes: {len(boxes)} are more than {limits.boxes}; send several requests", "boxes")
