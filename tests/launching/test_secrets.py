"""Secrets do not reach a command line: words, run files, `.deepspeed_env`, and what DeepSpeed's own runner would export."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rb.core.config import RunConfig
from rb.core.config_keys import all_keys
from rb.core.run_file import to_tree
from rb.launching.findings import table
from rb.launching.secrets import check_secrets, clean_environment, is_secret, read_environment_file, secret_variables
from tests.support.processes import start
from tests.support.remedies import Said, covers, helps

SECRET = {
    "MLFLOW_TRACKING_TOKEN": "abc",
    "MLFLOW_TRACKING_PASSWORD": "abc",
    "MLFLOW_TRACKING_USERNAME": "me",  # belongs to the password
    "MLFLOW_TRACKING_URI": "https://me:geheim@mlflow.example/",
    "AWS_SECRET_ACCESS_KEY": "abc",
    "AWS_ACCESS_KEY_ID": "AKIA1234567890ABCDEF",
    "HF_TOKEN": "hf_abc",
    "PYTHON_KEYRING_PASSPHRASE": "abc",
    "WANDB_API_KEY": "abc",
    "NCCL_NOTE": "ghp_" + "a" * 36,
}
PLAIN = {
    "PATH": "/usr/bin",
    "PWD": "/home/me",
    "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
    "PYTHONPATH": "/a:/b",
    "TOKENIZERS_PARALLELISM": "false",
    "NCCL_SOCKET_IFNAME": "eth0",
    "HF_TOKEN": "",
    "SSH_AUTH_SOCK": "/tmp/agent",
    "KEYBOARD": "de",
}


def test_what_is_a_secret() -> None:
    assert secret_variables(SECRET | {"PATH": "/usr/bin"}) == SECRET
    assert secret_variables(PLAIN) == {}
    assert clean_environment(SECRET | {"PATH": "/usr/bin"}) == {"PATH": "/usr/bin"}


def test_no_key_of_a_run_file_looks_like_one() -> None:
    assert [key.name for key in all_keys() if is_secret(key.name, "1")] == []
    assert check_secrets(["decode.max_new_tokens=20"], to_tree(RunConfig()), [])[0].state == "ok"


def test_deepspeeds_runner_exports_none_of_a_cleaned_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real runner, with a pdsh that prints its words: it exports a login as it is, and a cleaned environment has none."""
    for name, does in (("pdsh", 'printf "%s\\n" "$@"'), ("ssh", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    for name in SECRET:
        monkeypatch.delenv(name, raising=False)
    own = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def exported(environ: dict[str, str]) -> str:
        words = (f"--hostfile={tmp_path}/hosts", "--master_addr=127.0.0.1", "x.py")
        done = start("deepspeed.launcher.runner", *words, **own, **environ)
        assert done.wait() == 0, done.output()
        assert "deepspeed.launcher.launch" in done.output()
        return done.output()

    assert "geheim" in exported(SECRET)
    assert "geheim" not in exported(clean_environment(SECRET))


# Remedy -> (words of the command, keys of the run, lines of .deepspeed_env), then what follows the remedy.
WRONG = {
    "leave {} out, and put the secret into an environment variable": (
        (["tracking.experiment=https://me:geheim@host/x"], "a", None),
        ([], "a", None),
    ),
    "remove {} from the run file, and put the secret": (
        ([], "https://me:geheim@host/x", None),
        ([], "a", None),
    ),
    "at which DeepSpeed's launcher breaks off; leave only lines NAME=value": (
        ([], "a", b"A=1\n\nB=2\n"),
        ([], "a", b"A=1\nB=2\n"),
    ),
    "holds a letter that the shell of the other nodes reads as a command; write it without": (
        ([], "a", b'A=1\nB="2 3"\n'),
        ([], "a", b"A=1\nB=2,3\n"),
    ),
    "is not UTF-8; write it again with lines": (([], "a", b"A=\xff\n"), ([], "a", b"A=1\n")),
    "remove the line; `export {}=...` in the shell that starts": (
        ([], "a", b"HF_TOKEN=hf_geheim\nA=1\n"),
        ([], "a", b"A=1\n"),
    ),
}


@pytest.mark.parametrize("piece", covers(WRONG))
def test_secrets_are_named_and_the_remedy_helps(piece: str, tmp_path: Path) -> None:
    cases = list(WRONG[piece])

    def fault() -> str:
        words, experiment, file = cases[0]
        if file is not None:
            (tmp_path / ".deepspeed_env").write_bytes(file)
        tree = to_tree(RunConfig())
        tree["tracking"]["experiment"] = experiment
        return table(check_secrets(words, tree, [tmp_path, tmp_path]))

    def follow(said: Said) -> None:
        assert ": all: secrets: " in said
        assert "geheim" not in said  # the message itself is no leak
        cases.pop(0)

    helps(piece, fault, follow)


@pytest.mark.parametrize(
    "line", [b"", b"# a comment", b"export A=1", b"A", b"=1", b"1A=2", b"A=$(touch x)", b"A=1\x00"]
)
def test_lines_of_the_environment_file_that_are_refused(line: bytes, tmp_path: Path) -> None:
    (tmp_path / ".deepspeed_env").write_bytes(b"A=1\n" + line + b"\nB=2\n")
    with pytest.raises(ValueError, match=r"\.deepspeed_env, line 2: "):
        read_environment_file(tmp_path / ".deepspeed_env")
