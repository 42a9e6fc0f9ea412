"""URLs of shards: which schemes are read, and that none holds a secret. A ``Location`` is a path of a file system or such a URL.

A URL stands in run files, run folders, logs, MLflow and on command lines, so a login or a signature in it is refused here, wherever it was
written. Who may read what comes from the environment and the usual files of each store's tools (docs/data.md).
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

SCHEMES = ("s3", "gs", "hf", "http", "https")
_START = re.compile(r"([a-z][a-z0-9+.:-]*)://", re.IGNORECASE)
_LOGIN = re.compile(r"(?<=://)[^/]*@")
# In a URL these begin a query, an escape, a pattern: a file's name that holds one would name something else.
_NOT_IN_NAMES = re.compile(r"[/\\?#%*\[\]]")


@dataclass(frozen=True)
class Url:
    """A URL of a folder or file; ``/`` and ``parent`` as of paths.

    Raises:
        ValueError: another scheme, no host or bucket, a login or a query; the message never quotes what may be a secret.
    """

    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", self.text.rstrip("/"))
        shown = public(self.text)
        found = _START.match(self.text)
        if found is None or found[1] not in SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise ValueError(f"{shown}: only URLs that begin with {schemes} are read; give one of them, or a path")
        if shown != self.text:
            raise ValueError(
                f"{shown}: a URL with a login, a query or a fragment is refused, since it would be seen in logs and run folders; "
                "give the plain URL, and the login by the environment (docs/data.md)"
            )
        host, _, path = self.text[found.end() :].partition("/")
        if not host or not self.text.isprintable() or any(part in (".", "..") for part in path.split("/")):
            raise ValueError(f"{shown}: is not a plain URL; write SCHEME://BUCKET-OR-HOST/FOLDER, without . and ..")

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, name: str) -> Url:
        """The file ``name`` in this folder; ``ValueError`` for a name that could lead elsewhere."""
        if not name or name in (".", "..") or not name.isprintable() or _NOT_IN_NAMES.search(name):
            raise ValueError(f"{self.text}: {name!r} cannot be the name of a file in it; rename the file")
        return Url(f"{self.text}/{name}")

    @property
    def scheme(self) -> str:
        """``s3``, ``http``, ..."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """The folder."""
        return Url(self.text.rpartition("/")[0])


Location: TypeAlias = Path | Url


def is_url(text: object) -> bool:
    """Whether a text is meant as a URL, of whatever scheme."""
    return "://" in str(text)


def location(place: str | Path | Url) -> Location:
    """The path or URL that a text means.

    Raises:
        ValueError: a URL that is not read, as ``Url``.
    """
    if isinstance(place, Path | Url):
        return place
    return Url(place) if is_url(place) else Path(place)


def location_argument(text: str) -> Location:
    """``location`` as the type of a command's argument: its error is shown as it is, without the argument's value."""
    try:
        return location(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def public(text: str) -> str:
    """A URL without login, query and fragment."""
    return re.split(r"[?#]", _LOGIN.sub("***@", text), maxsplit=1)[0]
