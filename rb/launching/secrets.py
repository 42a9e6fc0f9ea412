"""Passwords, tokens and keys: none may stand on a command line, which every user of a host reads in ``ps``, on every node.

A launcher puts the words of a command there, and DeepSpeed's also what it exports to other nodes: variables whose names begin with MLFLOW,
PYTHON, MV2, UCX or NCCL, and all lines of a file ``.deepspeed_env``. Secrets of the environment are taken out before a launcher starts, and go
to the agents by a file of the run folder that only its owner can read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rb.core.strict_json import FormatError, read_bytes
from rb.launching.findings import EVERYWHERE, FAILED, OK, WARNING, Finding

ENVIRONMENT_FILE = ".deepspeed_env"
MAX_BYTES = 1 << 16
# Words of a name that say its value is a secret: MLFLOW_TRACKING_TOKEN, HF_TOKEN, AWS_SECRET_ACCESS_KEY, tracking.api_key.
_SECRET_NAME = re.compile(
    r"(?i)(?:^|[._-])(token|(?:passw(?:or)?d|passphrase|secret|credential|(?:api|access|private|secret|account|auth|ssh)[_-]?key)s?)(?:$|[._-])"
)
_NEEDED_WITH_THEM = (
    "AWS_",
    "FSSPEC_",
    "MLFLOW_TRACKING_USERNAME",
    "AZURE_",
    "GOOGLE_APPLICATION_CREDENTIALS",
)  # parts of a login
_LOGIN_IN_URL = re.compile(r"(?i)\b[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@")
# Tokens that say what they are, wherever they stand: Hugging Face, GitHub, AWS, OpenAI, Slack, JSON web tokens.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|sk-[A-Za-z0-9_-]{30,}|xox[abpr]-[A-Za-z0-9-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
_LINE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")


def is_secret(name: str, value: str) -> bool:
    """Whether a variable or key with this value must not be seen by others."""
    named = _SECRET_NAME.search(name) is not None and value not in ("", "null")
    return named or _LOGIN_IN_URL.search(value) is not None or _TOKEN.search(value) is not None


def secret_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that go to the agents by a file: secrets, and what belongs to a login with them."""
    return {k: v for k, v in environ.items() if v and (is_secret(k, v) or k.startswith(_NEEDED_WITH_THEM))}


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without them, for a launcher that exports some of it on command lines."""
    secret = secret_variables(environ)
    return {name: value for name, value in environ.items() if name not in secret}


def check_secrets(
    overrides: Sequence[str], config: Mapping[str, Any], folders: Sequence[Path] | None = None
) -> list[Finding]:
    """Secrets in ``key=value`` words, in a run's configuration, and in the files that DeepSpeed's launcher exports whole.

    Args:
        overrides: words of the command, as they were typed; they reach the command line of every rank.
        config: the run as a tree; it is stored in the run folder and with every checkpoint.
        folders: where DeepSpeed looks for ``.deepspeed_env``: by default the home and the working directory.
    """
    home = os.path.expanduser("~")  # noqa: PTH111 (Path's raises where there is no home)
    folders = (Path(home), Path()) if folders is None else folders
    found = []
    for word in overrides:
        key, _, value = word.partition("=")
        if is_secret(key, value):
            found.append(
                _failed(
                    f"{key}=... holds a password, token or key, and command lines are seen by every user",
                    f"leave {key} out, and put the secret into an environment variable such as MLFLOW_TRACKING_PASSWORD",
                )
            )
    typed = {word.partition("=")[0] for word in overrides}
    for key, value in _leaves(config):
        if key not in typed and is_secret(key, value):
            found.append(
                _failed(
                    f"{key} of the run file holds a password, token or key, and is stored with every checkpoint",
                    f"remove {key} from the run file, and put the secret into an environment variable such as MLFLOW_TRACKING_PASSWORD",
                )
            )
    for path in dict.fromkeys((folder / ENVIRONMENT_FILE).absolute() for folder in folders):
        found += _check_file(path)
    return found or [Finding(EVERYWHERE, "secrets", OK, "none on a command line")]


def read_environment_file(path: Path) -> dict[str, str]:
    """The variables of a ``.deepspeed_env``, each line ``NAME=value``.

    Raises:
        ValueError: a line that makes DeepSpeed's launcher end with a traceback (blank, a comment), or that a shell reads as more than
            one variable; names file and line.
    """
    try:
        lines = read_bytes(path, MAX_BYTES).decode().split("\n")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is not UTF-8; write it again with lines NAME=value") from None
    variables: dict[str, str] = {}
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        if not _LINE.fullmatch(line) or not line.isprintable():
            what = (
                "is blank"
                if not line.strip()
                else "is a comment"
                if line.lstrip().startswith("#")
                else "is not NAME=value"
            )
            raise FormatError(
                f"{path}, line {number}: {what}, at which DeepSpeed's launcher breaks off; leave only lines NAME=value"
            )
        name, _, value = line.partition("=")
        if re.search(r"[\"`$\\;&|<>]", value):
            raise FormatError(
                f"{path}, line {number}: the value of {name} holds a letter that the shell of the other nodes reads as a command; "
                'write it without quotes and $ ` " \\ ; & | < >'
            )
        variables[name] = value
    return variables


def _check_file(path: Path) -> list[Finding]:
    if not path.exists():
        return []
    try:
        variables = read_environment_file(path)
    except (ValueError, OSError) as error:
        return [Finding(EVERYWHERE, "secrets", FAILED, str(error))]
    return [
        Finding(
            EVERYWHERE,
            "secrets",
            WARNING,  # `rb launch` hands the file over itself
            f"{path}: {name} is a secret, and DeepSpeed's own launcher puts this file on command lines",
            f"remove the line; `export {name}=...` in the shell that starts the run, which hands it over by a file",
        )
        for name, value in variables.items()
        if is_secret(name, value)
    ]


def _failed(value: str, remedy: str) -> Finding:
    return Finding(EVERYWHERE, "secrets", FAILED, value, remedy)


def _leaves(tree: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of every text in a tree."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list | tuple):
        for i, value in enumerate(tree):
            yield from _leaves(value, f"{where}[{i}]")
    elif isinstance(tree, str):
        yield where, tree
