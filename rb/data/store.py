"""Files of a folder at a URL, read by byte ranges through fsspec: patient with a store that is busy or away, clear where it refuses.

This file is the one owner of retries: those inside the stores' own clients are turned off where they can be. An error is tried again for
``PATIENCE_S`` if it may pass (5xx, throttling, a lost connection, a body that breaks off), with waits that double and are drawn (exponential
back-off with jitter); any other ends at once. Either way the end is one line with URL, reason and remedy, and without secrets.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rb.core.strict_json import read_bytes
from rb.core.threads import in_order
from rb.core.urls import Location, Url, public

T = TypeVar("T")
PATIENCE_S = 90.0  # how long one request is tried; less than any limit of a hang (`limits` of run files)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 8.0
CONNECT_S, SILENCE_S = 5.0, 15.0  # until a connection stands; between two pieces of an answer
THREADS = 16  # requests of a process at one time
PIECE = 8 << 20  # bytes of one request where whole files are read
MOST_SAID = 300  # letters of a library's error
PACKAGES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "http": ("aiohttp", "http"), "https": ("aiohttp", "http")}
LOGINS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; of a public bucket FSSPEC_S3_ANON=true",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`; of a public bucket FSSPEC_GS_TOKEN=anon",
    "hf": "HF_TOKEN, or `hf auth login`",
}
_AGAIN = (408, 425, 429)  # HTTP's own words for "later"
_NEVER = (FileExistsError, ImportError, IsADirectoryError, LookupError, NotADirectoryError, TypeError, ValueError)
_IN_ERRORS = re.compile(r"[a-z][a-z0-9+.-]*://[^\s'\"<>)]+", re.IGNORECASE)

log = logging.getLogger(__name__)
# By process and scheme: connections and fsspec's thread do not survive a fork. A parent's stay here untouched, so that nobody closes them.
_systems: dict[tuple[int, str], Any] = {}


class StoreError(ValueError):
    """A file of a store that could not be read; the message names URL, reason and remedy."""


class MissingError(StoreError):
    """The file does not exist."""


class CutShortError(StoreError):
    """The file ends before the bytes that were asked for."""


class _NoRangesError(Exception):
    """An HTTP server that answers a request for a range with the whole file."""


class _ShortAnswerError(Exception):
    """Fewer bytes than asked for, of a file that has them."""


class Store:
    """The files of the folder at ``folder``. May be used by several threads, and after a fork."""

    def __init__(self, folder: Url) -> None:
        self.folder = folder

    def size(self, name: str) -> int:
        """Bytes of a file.

        Raises:
            StoreError: ``MissingError``, or it cannot be asked for.
        """

        def ask(system: Any, path: str) -> int:
            size = system.info(path).get("size")
            if size is None:
                raise _NoRangesError
            return int(size)

        return self._patiently(name, ask)

    def read(self, name: str, start: int, length: int) -> bytes:
        """``length`` bytes of a file from byte ``start`` on; never fewer or more.

        Raises:
            StoreError: ``MissingError``, ``CutShortError``, or they cannot be read.
        """
        if length == 0:
            return b""

        def ask(system: Any, path: str) -> bytes:
            try:
                data = _bytes(system, path, start, start + length)
            except Exception as error:
                if _status(error) != 416:  # the range begins behind the end
                    raise
                data = b""
            if len(data) > length:
                raise _NoRangesError
            if len(data) < length:
                size = system.info(path).get("size")
                if size is not None and int(size) < start + length:
                    raise CutShortError(
                        f"{self.folder}/{name}: only {max(0, int(size) - start):,} of {length:,} bytes are left from byte {start:,} on; "
                        "the file was cut or replaced; put the right one there again"
                    )
                raise _ShortAnswerError(f"{len(data):,} of {length:,} bytes came")
            return data

        return self._patiently(name, ask)

    def read_whole(self, name: str, most: int) -> bytes:
        """A small file; ``StoreError`` if it has more than ``most`` bytes."""
        size = self.size(name)
        if size > most:
            raise StoreError(f"{self.folder}/{name}: more than {most:,} bytes; this is another file than its name says")
        return self.read(name, 0, size)

    def pieces(self, name: str, size: int) -> Iterator[bytes]:
        """All bytes of a file of ``size`` bytes, in order, a few pieces read ahead."""
        starts = range(0, size, PIECE)
        work = in_order(lambda start: self.read(name, start, min(PIECE, size - start)), starts, workers=4, ahead=5)
        return (piece for _, piece in work)

    def _patiently(self, name: str, ask: Callable[[Any, str], T]) -> T:
        url = self.folder / name
        end = time.monotonic() + PATIENCE_S
        for tries in itertools.count(1):
            try:
                return ask(_system(url), str(url))
            except StoreError:
                raise
            except Exception as raised:  # noqa: BLE001 (the stores' clients raise dozens of classes)
                error = _behind(raised)
                if not _may_pass(error):
                    raise _refused(url, error) from None
                reason = said(error)
            wait = random.uniform(0.5, 1.0) * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** (tries - 1))
            if time.monotonic() + wait > end:
                raise StoreError(
                    f"{url}: could not be read in {tries} tries over {PATIENCE_S:.0f} s, the last one: {reason}; "
                    "look whether the store is up and can be reached from this host, then start again"
                )
            if tries == 4:
                log.warning("%s: %s; it is tried again for up to %.0f s", url, reason, PATIENCE_S)
            time.sleep(wait)
        raise AssertionError("count() has no end")


def read_file(place: Location, most: int) -> bytes:
    """A small file of a folder or a store; of a store each time, so that a file that was replaced is never taken for the old one."""
    if isinstance(place, Url):
        return Store(place.parent).read_whole(place.name, most)
    return read_bytes(place, most)


def _system(url: Url) -> Any:
    """This process's file system for a URL's scheme. Two threads may make one each at first; one of them stays."""
    key = (os.getpid(), url.scheme)
    if key not in _systems:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True}
        if url.scheme == "s3":
            times = {"connect_timeout": CONNECT_S, "read_timeout": SILENCE_S, "max_pool_connections": THREADS}
            options["config_kwargs"] = {"retries": {"mode": "standard", "total_max_attempts": 1}, **times}
        if url.scheme in ("http", "https"):
            options["get_client"] = _http_client
        try:
            system = fsspec.filesystem(url.scheme, **options)
        except ImportError:
            package, extra = PACKAGES[url.scheme]
            raise StoreError(
                f"{url}: reading {url.scheme}:// needs the package {package}; pip install 'regionblip[{extra}]'"
            ) from None
        if url.scheme == "s3":
            system.retries = 1
        _systems.setdefault(key, system)
    return _systems[key]


async def _http_client(**_options: Any) -> Any:
    """A session that takes byte ranges as they were asked for or nothing, and is led neither from https to http nor out of both."""
    import aiohttp

    async def answered(_session: Any, _context: Any, params: Any) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", params.headers.get("Range", ""))
        if asked and params.response.status < 400:
            length = params.response.content_length
            if params.response.status != 206 or (length or 0) > int(asked[2]) - int(asked[1]) + 1:
                raise _NoRangesError

    async def redirected(_session: Any, _context: Any, params: Any) -> None:
        now, then = params.url.scheme, urlsplit(params.response.headers.get("Location", "")).scheme.lower()
        if then not in ("", "http", "https") or (now, then) == ("https", "http"):
            raise ValueError(f"the server leads from {now} to {then}")

    watch = aiohttp.TraceConfig()
    watch.on_request_end.append(answered)
    watch.on_request_redirect.append(redirected)
    times = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
    plain = {"Accept-Encoding": "identity"}
    return aiohttp.ClientSession(timeout=times, headers=plain, trace_configs=[watch], trust_env=True)


def _bytes(system: Any, path: str, start: int, end: int) -> bytes:
    if getattr(system, "async_impl", False):
        return bytes(system.cat_file(path, start=start, end=end))
    with system.open(path, "rb", cache_type="none") as file:  # hf: by default 5 MB would be read around each range
        file.seek(start)
        return bytes(file.read(end - start))


def _behind(error: Exception) -> Exception:
    """What really happened: for fsspec a file of which an HTTP server gives no size is not there, whatever the reason."""
    cause = error.__cause__
    return cause if isinstance(error, FileNotFoundError) and isinstance(cause, Exception) else error


def _may_pass(error: Exception) -> bool:
    """Whether the same request may do better later."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in _AGAIN
    if isinstance(error, FileNotFoundError | PermissionError | _NoRangesError) or _is_login(error):
        return False
    return not isinstance(error, _NEVER)


def _status(error: BaseException) -> int | None:
    """The HTTP status behind an error, as aiohttp, botocore (also below s3fs's own error), gcsfs and the hub's client keep it."""
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        meta = answer.get("ResponseMetadata", {}) if isinstance(answer, dict) else {}
        held = (getattr(one, "status", None), getattr(answer, "status_code", None), meta.get("HTTPStatusCode"))
        code = getattr(one, "code", None) if type(one).__module__.startswith("gcsfs") else None
        for status in (*held, code):
            if isinstance(status, int) and 100 <= status < 600:
                return status
    return None


def _is_login(error: Exception) -> bool:
    return bool(re.search(r"Credential|ProfileNotFound|RefreshError|TokenRetrieval", type(error).__name__))


def _refused(url: Url, error: Exception) -> StoreError:
    """The end for an error that would come again."""
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return MissingError(f"{url}: is not there; correct the URL, or upload the file again")
    if isinstance(error, _NoRangesError):
        return StoreError(
            f"{url}: the server does not send byte ranges, which reading single records needs; "
            "use one that does (nginx, any object store), or copy the folder to a disk and give its path"
        )
    if isinstance(error, PermissionError) or _is_login(error) or status in (401, 403):
        login = LOGINS.get(url.scheme, "a line for the host in ~/.netrc")
        return StoreError(f"{url}: the store refuses to read it ({said(error)}); set {login}")
    return StoreError(f"{url}: cannot be read ({said(error)}); correct the URL, or the settings of the store's client")


def said(error: Exception) -> str:
    """A library's error in one short line; URLs in it without login and query, which may be signatures."""
    words = " ".join((str(error) or type(error).__name__).split())
    return _IN_ERRORS.sub(lambda found: public(found[0]), words)[:MOST_SAID]
