"""Stanford CoreNLP 3.6.0, which SPICE parses captions with: where its two jars are looked for, and ``rb metrics install``, which puts them there.

They are under the GPL and no part of this project. SPICE's own jar and its other libraries come with ``pycocoevalcap``. What is fetched is
compared with the sha256 below before it gets its name, so a broken or altered download is never used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rb.core import progress
from rb.core.files import file_sha256, whole_file

JARS_VARIABLE = "RB_SPICE_JARS"
MAVEN_CENTRAL = "https://repo1.maven.org/maven2/edu/stanford/nlp/stanford-corenlp/3.6.0"
MAX_BYTES = 500_000_000  # of one jar; the models have 378 MB
_PIECE = 1 << 20
_WAIT_S = (20, 60)  # for a connection, and between two pieces


@dataclass(frozen=True)
class Jar:
    """One jar: the names it may have, each with the sha256 of that file."""

    what: str
    sha256: dict[str, str]


CODE = Jar("code", {"stanford-corenlp-3.6.0.jar": "d341d5863276f55782c5ef73212222d6b3b48e02ae1951ab6de7618d28b12742"})
MODELS = Jar(
    "models",
    {
        "stanford-corenlp-3.6.0-models.jar": "d285157bd7887ee3018094b5dbae092e49088b023361ccdb550ee1daf9b2c9bd",
        # The 11 entries of it that SPICE reads, byte for byte: 79 MB.
        "stanford-corenlp-3.6.0-models-spice.jar": "6fac167e5955ab787645a7dca6bc636d84f3000f1d483059c2c3abe06fb9c4dc",
    },
)
HOW_TO_GET_JARS = (
    "`rb metrics install` fetches Stanford CoreNLP 3.6.0 (GPL-3, 385 MB from Maven Central); without a network: download "
    f"{' and '.join(next(iter(jar.sha256)) for jar in (CODE, MODELS))} elsewhere, then `rb metrics install --from FOLDER`"
)


class SpiceMissingError(ValueError):
    """SPICE's libraries are not there; the message says how to get them."""


def jar_folder() -> Path:
    """Where the jars are looked for and installed: the folder that ``RB_SPICE_JARS`` names, else the user's data folder."""
    named = os.environ.get(JARS_VARIABLE)
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return Path(named) if named else data / "regionblip" / "spice"


def spice_jars() -> list[Path]:
    """The CoreNLP jars: code, then models. Raises ``SpiceMissingError``."""
    folder = jar_folder()
    found = {
        name: sorted(folder.glob(name)) for name in ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models*.jar")
    }
    lacking = [name for name, paths in found.items() if not paths]
    if lacking:
        named = f"{JARS_VARIABLE}={folder}" if os.environ.get(JARS_VARIABLE) else str(folder)
        raise SpiceMissingError(f"{named} has no {' and no '.join(lacking)}; {HOW_TO_GET_JARS}")
    return [paths[0] for paths in found.values()]


def install(source: str = MAVEN_CENTRAL, jars: Sequence[Jar] = (CODE, MODELS)) -> list[str]:
    """Put the jars into ``jar_folder()``; a line for each. One that is there already, unaltered, is left as it is.

    Args:
        source: a folder, or an address under which the jars have their names.
        jars: what to install.

    Raises:
        ValueError: a jar that cannot be had, or that is not the one expected; nothing of it was kept.
    """
    folder, lines = jar_folder(), []
    folder.mkdir(parents=True, exist_ok=True)
    for jar in jars:
        here = [folder / name for name, digest in jar.sha256.items() if _is(folder / name, digest)]
        path = here[0] if here else _fetch(source, jar, folder)
        lines.append(f"{path}: {'is there already' if here else f'{path.stat().st_size / 1e6:.0f} MB'}")
    return lines


def _is(path: Path, digest: str) -> bool:
    return path.is_file() and file_sha256(path) == digest


def _fetch(source: str, jar: Jar, folder: Path) -> Path:
    """One jar under the first of its names that the source has."""
    remedy = f"download it elsewhere ({MAVEN_CENTRAL}) and give its folder: rb metrics install --from FOLDER"
    for name, digest in jar.sha256.items():
        opened = _open(source, name, remedy)
        if opened is None:
            continue
        with whole_file(folder / name) as temporary:
            try:
                with temporary.open("wb") as file:
                    size = _copy(opened, file, name)
            except OSError as error:  # of the network too: all errors of requests are
                raise ValueError(f"{source}/{name}: was cut short ({error}); try again, or {remedy}") from error
            if file_sha256(temporary) != digest:
                raise ValueError(
                    f"{source}/{name}: its {size:,} bytes are not the jar expected (sha256 {digest}): cut short or altered; nothing was "
                    f"kept; {remedy}"
                )
        return folder / name
    raise ValueError(f"{source}: has no {' and no '.join(jar.sha256)}; {remedy}")


def _copy(pieces: Iterator[bytes], file: IO[bytes], name: str) -> int:
    size, bar = 0, progress.bar(desc=name, unit="B", unit_scale=True)
    with closing(bar):
        for piece in pieces:
            size += len(piece)
            if size > MAX_BYTES:
                raise OSError(f"more than {MAX_BYTES:,} bytes")
            file.write(piece)
            bar.update(len(piece))
    return size


def _open(source: str, name: str, remedy: str) -> Iterator[bytes] | None:
    """A file of a folder or an address in pieces; none where there is no such file."""
    if not source.startswith(("http://", "https://")):
        if not Path(source).is_dir():
            raise ValueError(f"--from {source}: is no folder and no address (http://, https://); {remedy}")
        path = Path(source) / name
        return _read(path.open("rb")) if path.is_file() else None
    import requests  # here: only this command needs a network

    try:
        answer = requests.get(f"{source.rstrip('/')}/{name}", stream=True, timeout=_WAIT_S)
    except requests.RequestException as error:
        raise ValueError(f"{source}/{name}: cannot be reached ({_cause(error)}); {remedy}") from error
    if answer.status_code == 404:
        answer.close()
        return None
    if answer.status_code != 200:
        raise ValueError(f"{source}/{name}: answered {answer.status_code} {answer.reason}; {remedy}")
    return answer.iter_content(_PIECE)


def _read(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece


def _cause(error: Exception) -> str:
    """The innermost cause of a failed request, without the library's layers around it."""
    inner = getattr(error.args[0], "reason", error) if error.args else error
    return str(inner).rpartition(">: ")[2]
