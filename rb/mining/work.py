"""The unit of work of mining: one stage over one shard becomes one file, written whole, and a record of what made it.

The record stands beside the output as ``NAME.done`` and is written after it. A unit is skipped only if configuration, model, source and output
are the recorded ones. The source of a stage is the input shard and the output of the stage before, so a changed setting redoes its own stage and
then only those stages whose input really changed. A kill between output and record costs one unit: it is made again, with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rb.core import strict_json
from rb.core.files import file_sha256, is_temporary, sha256, write_json, write_whole
from rb.core.locks import FileLock

LOCK_FILE = "mining.lock"
_RECORD: dict[str, strict_json.Check] = {
    "config": strict_json.name,
    "model": strict_json.name,
    "source": strict_json.name,
    "output": strict_json.name,
    "taken": strict_json.count,
    "rejected": strict_json.counts,
    "regions": strict_json.counts,
    "seconds": lambda value: None if type(value) in (int, float) and value >= 0 else "must be a number, 0 or more",
}


class TooManyRejectedError(ValueError):
    """A shard with a larger share of rejected images than the configuration allows; its unit writes nothing."""


@dataclass(frozen=True)
class Made:
    """What a stage made of one shard, in memory: the bytes of the output, images taken in, and (image key, reason) of each that was rejected.

    Attributes:
        regions: how many are ``kept``, and how many were dropped so far, as ``STAGE: REASON``.
        seconds: that it took, without starting the model.
    """

    content: bytes
    taken: int
    rejected: tuple[tuple[str, str], ...] = ()
    regions: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Done:
    """The record of a finished unit: sha256 of configuration, model, source and output; images taken in and rejected, by reason.

    ``regions`` and ``seconds`` as of ``Made``: two runs differ in the seconds alone.
    """

    config: str
    model: str
    source: str
    output: str
    taken: int
    rejected: Mapping[str, int]
    regions: Mapping[str, int]
    seconds: float


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold ``folder`` against other drivers while in the block.

    Raises:
        ValueError: another driver works there.
    """
    lock = FileLock(folder / LOCK_FILE)
    if not lock.acquire():
        raise ValueError(f"{folder}: another mining job works in this folder ({lock.owner() or 'unknown process'})")
    try:
        yield
    finally:
        lock.release()


def sweep(folder: Path) -> int:
    """Remove what killed writers left in ``folder`` and the folders in it, and say how many files; for the one who holds ``alone_in``."""
    left = [path for path in (*folder.glob(".*"), *folder.glob("*/.*")) if path.is_file() and is_temporary(path.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def run_unit(
    output: Path, source: str, config: object, model: str, max_rejected: float, make: Callable[[], Made]
) -> tuple[Done, bool]:
    """Make ``output`` from ``source``, unless its record says that this has been done. The caller holds ``alone_in``.

    Args:
        output: the one name of this stage's output for this shard.
        source: digest of all that the stage reads.
        config: what the stage's output depends on, as JSON values.
        model: digest of the stage's model; "none" without one.
        max_rejected: largest share (0 to 1) of a shard's images that may be rejected. Not part of the digest: it does not change the bytes.
        make: the stage; its bytes depend on ``source``, ``config`` and ``model`` only.

    Returns:
        the record, and whether the unit was made just now.

    Raises:
        TooManyRejectedError: more images were rejected than allowed; the message lists them.
        CannotWriteError: the file system takes no more.
    """
    wanted = {"config": sha256(strict_json.dumps(config)), "model": model, "source": source}
    done = finished(output)
    if done and all(getattr(done, field) == digest for field, digest in wanted.items()):
        _check_share(output, done.taken, sum(done.rejected.values()), max_rejected, ())
        return done, False
    output.parent.mkdir(parents=True, exist_ok=True)
    made = make()
    _check_share(output, made.taken, len(made.rejected), max_rejected, made.rejected)
    reasons = [reason for _, reason in made.rejected]
    counts = {reason: reasons.count(reason) for reason in sorted(set(reasons))}
    write_whole(output, made.content)
    done = Done(
        **wanted,
        output=sha256(made.content),
        taken=made.taken,
        rejected=counts,
        regions=made.regions,
        seconds=made.seconds,
    )
    write_json(_record_of(output), asdict(done))
    return done, True


def finished(output: Path) -> Done | None:
    """The record of ``output``; none where either is missing, the record is damaged, or the output is not the recorded one."""
    done = recorded(output)
    return done if done is not None and output.is_file() and file_sha256(output) == done.output else None


def recorded(output: Path) -> Done | None:
    """The record of ``output`` alone, whose content is not looked at; none where it is missing or damaged."""
    record = _record_of(output)
    try:
        fields = strict_json.checked(strict_json.read(record), str(record), _RECORD)
    except (FileNotFoundError, strict_json.FormatError):  # damaged: the unit is made again, which mends it
        return None
    return Done(**fields)


def _record_of(output: Path) -> Path:
    return output.with_name(output.name + ".done")


def _check_share(output: Path, taken: int, rejected: int, most: float, named: tuple[tuple[str, str], ...]) -> None:
    if rejected > most * taken:
        listed = ", ".join(f"{key} ({reason})" for key, reason in named)
        raise TooManyRejectedError(
            f"{output}: {rejected} of {taken} images were rejected, more than max_rejected = {most:g} allows"
            + (f": {listed}" if listed else "")
        )
