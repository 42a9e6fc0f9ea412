"""The tags that MLflow's own clients give a run: who started what, from which commit. Written to the journal, so that a later copy has them too."""

from __future__ import annotations

import getpass
import os
import sys

from rb.core.install import git_commit

_DIRTY = "-dirty"


def client_tags() -> dict[str, str]:
    """``mlflow.user``, ``mlflow.source.name``, ``.type`` and, where this is a checkout, ``mlflow.source.git.commit``."""
    tags = {"mlflow.user": user_name(), "mlflow.source.name": sys.argv[0] or "<console>", "mlflow.source.type": "LOCAL"}
    commit = git_commit().removesuffix(_DIRTY)
    if commit != "unknown":
        tags["mlflow.source.git.commit"] = commit
    return tags


def user_name() -> str:
    """The user of this process; a number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return str(os.getuid())
