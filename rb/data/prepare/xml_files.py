"""XML of data sets (annotations in the form of PASCAL VOC): the project's one reader. Nothing in a file is fetched or expanded."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import fromstring

from rb.core.stand_ins import stand_in
from rb.core.strict_json import FormatError, read_bytes

MAX_BYTES = (
    1 << 18
)  # an image's annotation has some 5,000; elements take 50 times their text in memory, in each of several threads
MAX_DEPTH = 64


def read_xml(path: Path) -> Element:
    """The root of a small XML file.

    Raises:
        FormatError: no XML, too large, with a document type or entities (which can be made to explode), nested without end.
        OSError: the file cannot be read.
    """
    data = read_bytes(path, MAX_BYTES)
    other = stand_in(data)
    if other:
        raise FormatError(f"{path}: {other}")
    try:
        root = fromstring(data, forbid_dtd=True)
    except DefusedXmlException as error:
        problem = f"document types and entities are refused ({type(error).__name__})"
    except (ParseError, ValueError, LookupError) as error:  # the last two: of the encoding that it names
        problem = " ".join(str(error).split())
    else:
        if not _deeper(root, MAX_DEPTH):
            return root
        problem = f"more than {MAX_DEPTH} elements within each other"
    raise FormatError(f"{path}: not an XML file that can be used ({problem}); download it again")


def _deeper(root: Element, limit: int) -> bool:
    """Whether elements are nested deeper than ``limit``; by levels, not by recursion."""
    level = [root]
    for _ in range(limit):
        level = [child for element in level for child in element]
        if not level:
            return False
    return True
