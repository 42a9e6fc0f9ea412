"""The sqlite file that MLflow keeps runs in: made whole or not at all, and looked at before MLflow opens it.

MLflow builds its tables in some 60 migrations (3 s) and cannot finish what a killed process began ("table secrets already exists"). So a new
store is built under a temporary name and then gets its own. A file that holds no run and that MLflow cannot open was begun so by others: it is
set aside and a new one is made. A broken file that may hold runs is named, with what to do; the journals hold everything.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from rb.core.files import temporary_name
from rb.core.locks import FileLock
from rb.tracking.errors import TrackingError, reason

SQLITE = "sqlite:///"
BEING_MADE_S = 60.0  # a file without runs that changed so recently may be one that another program is just making
_WAIT_S = 20.0  # for another process's write
# Of sqlite's messages, those that say nothing against the file itself.
_NO_LOCKS = ("disk I/O error", "locking protocol")
_MAY_PASS = ("database is locked", "disk is full", "unable to open", "readonly database")

_log = logging.getLogger(__name__)


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite store, none for any other."""
    return Path(uri[len(SQLITE) :]) if uri.startswith(SQLITE) else None


def artifact_folder(path: Path) -> str:
    """Where the store in ``path`` puts artifacts, as MLflow's address: beside it. MLflow's default is the working directory."""
    return (path.parent / "mlartifacts").resolve().as_uri()


def prepare_store(path: Path) -> None:
    """Let ``path`` be a store that MLflow can open; made where it is missing. Processes take their turns.

    Raises:
        TrackingError: the file is broken; the message has the remedy.
        OSError: it cannot be reached, made or written now.
    """
    with FileLock(path.with_name(path.name + ".lock")) as lock:
        if _exists(path):
            changed = path.stat().st_mtime  # MLflow's attempt to open it goes on with the migrations
            if _num_runs(path) == 0 and not _opens(path):
                _set_aside(path, changed)
        if not _exists(path):
            _make(path, alone=lock.certain)


def cannot_open(path: Path, error: Exception) -> Exception:
    """What to raise where MLflow could not open ``path``: an ``OSError`` for what may pass, else a ``TrackingError`` with the remedy."""
    why = reason(error)
    if "out-of-date database schema" in why:
        upgrade = f"mlflow db upgrade {SQLITE}{path}"
        return TrackingError(f"{path}: made by an older version of MLflow; copy it as a backup, then: {upgrade}")
    if any(word in why for word in _NO_LOCKS):
        return OSError(
            f"{path}: {why}; its file system may have no locks: let MLFLOW_TRACKING_URI name a file on a local disk "
            "(sqlite:////DIR/mlflow.db) or a server"
        )
    if any(word in why for word in _MAY_PASS):
        return OSError(f"{path}: {why}")
    return _broken(path, f"MLflow cannot open it ({why})")


def _broken(path: Path, problem: str) -> TrackingError:
    return TrackingError(
        f"{path}: {problem}; nothing is lost, the journals hold everything: move the file away (mv {path} {path}.broken), "
        "then rb track sync RUN_DIR writes each run to a new one"
    )


def _exists(path: Path) -> bool:
    """An empty file is a store that was never begun."""
    return path.exists() and path.stat().st_size > 0


def _num_runs(path: Path) -> int:
    try:
        with closing(sqlite3.connect(path, timeout=_WAIT_S)) as database:
            return int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
    except sqlite3.OperationalError as error:
        if "no such table" in str(error):
            return 0
        raise cannot_open(path, error) from error
    except sqlite3.DatabaseError as error:
        raise _broken(path, f"not a database that can be read ({error})") from error


def _opens(path: Path) -> bool:
    """Whether MLflow can open it."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    try:
        SqlAlchemyStore(f"{SQLITE}{path}", artifact_folder(path))
    except open_errors() as error:
        forget_connections(path)
        if isinstance(cannot_open(path, error), OSError):
            raise cannot_open(path, error) from error
        return False
    return True


def forget_connections(path: Path) -> None:
    """Close what MLflow keeps open of ``path`` in this process: it may be a file that had this name before."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    SqlAlchemyStore._get_or_create_engine(f"{SQLITE}{path}").dispose()  # noqa: SLF001 (MLflow has no other way)


def open_errors() -> tuple[type[Exception], ...]:
    """What MLflow raises where it cannot open a sqlite file (imports MLflow)."""
    from alembic.util import CommandError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, CommandError)


def _set_aside(path: Path, changed: float) -> None:
    if time.time() - changed < BEING_MADE_S:
        raise OSError(
            f"{path}: holds no run and cannot be opened, but changed a moment ago; another program may make it"
        )
    number = 1
    while (aside := path.with_name(f"{path.name}.broken-{number}")).exists():
        number += 1
    path.rename(aside)
    with suppress(FileNotFoundError):
        path.with_name(path.name + "-journal").rename(aside.with_name(aside.name + "-journal"))
    _log.warning("%s was half made and held no run; it is now %s, and a new one is made", path, aside.name)


def _make(path: Path, alone: bool) -> None:
    """Build a store under a temporary name; ``alone``: what other builders left under such names is of dead processes."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    if alone:
        for left_over in path.parent.glob(f".{path.name}.*.tmp*"):
            left_over.unlink(missing_ok=True)
    temporary = temporary_name(path)
    try:
        SqlAlchemyStore(f"{SQLITE}{temporary}", artifact_folder(path)).engine.dispose()
        if path.exists() and not _exists(path):
            path.unlink()
        with suppress(FileExistsError):  # where there are no locks, another process may have been faster
            _take_name(temporary, path)
        forget_connections(path)
    finally:
        temporary.unlink(missing_ok=True)


def _take_name(temporary: Path, path: Path) -> None:
    """Give a file its name; never in place of another file."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        temporary.rename(path)
