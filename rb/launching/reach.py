"""Whether ssh gets to the hosts of a job, asked of all at once."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rb.launching.findings import FAILED, OK, Finding

LIMIT_S = 30.0


def probe_hosts(hosts: Sequence[str], checkout: Path, python: str, run_dir_file: Path) -> list[Finding]:
    """A finding for every host: it answers, and has folder, Python and the job file."""

    def probe(host: str) -> Finding:
        there = f"cd {shlex.quote(str(checkout))} && test -x {shlex.quote(python)} && test -r {shlex.quote(str(run_dir_file))}"
        command = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-T", "--", host, there]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return Finding(
                host,
                "reach",
                FAILED,
                f"no answer in {LIMIT_S:.0f} s",
                "look whether the host runs and its sshd answers",
            )
        if done.returncode:
            said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            return Finding(host, "reach", FAILED, said[0], f"make `ssh {host} true` work without a password")
        return Finding(host, "reach", OK)

    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(probe, hosts))
