"""`rb launch` on two nodes of this host without imports: agents and ranks are forks of the controller, which is one of the test server
(`processes.py`). All else is the real thing: controller, agents over TCP, guards, ranks under DeepSpeed, restarts.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.support.processes import run_module

NODES = 2
_popen = subprocess.Popen


class Fork:
    """Stands for the ``Popen`` of ``python -m MODULE ...``."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.args = list(command)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                os.closerange(3, 1024)  # sockets and locks of the parent end with the parent
                os.environ.clear()
                os.environ.update(env)
                module = self.args.index("-m") + 1
                run_module(self.args[module], self.args[module + 1 :])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:  # noqa: BLE001 (a fork must not go on as its parent)
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # another thread was faster, and is about to write the code down
                return self.returncode
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = 60.0) -> int:
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def control(run_file: Path, overrides: list[str], restarts: int) -> None:
    """The controller of a job with one rank on each node; leaves with its exit code. For `processes.start_function`."""
    from rb.core.exit_codes import guarded, leave
    from rb.core.run_paths import open_run
    from rb.launching import controller, launchers, node, restart
    from rb.launching.job import Wish
    from rb.launching.request import Launch

    class Launched(launchers.Launched):
        """An agent for each node, as srun starts them."""

        def __init__(self, commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> None:
            (srun,) = commands
            agent = srun[srun.index(sys.executable) :]
            self._processes = [Fork(agent, {**environment, "SLURM_NODEID": str(k)}) for k in range(NODES)]  # type: ignore[misc]

    def popen(command: Sequence[str], **how: Any) -> object:
        return Fork(command, how["env"]) if "rb.train" in command else _popen(command, **how)

    controller.Launched = Launched  # type: ignore[misc]
    node.subprocess.Popen = popen  # type: ignore[assignment,misc]
    restart.FIRST_WAIT_S = 0.1

    def run() -> int:
        config = open_run(run_file, overrides)
        launch = Launch(
            "rb.train", launchers.SLURM, (launchers.Place("localhost", 1),) * NODES, config, ("--run", str(run_file)), tuple(overrides),
            restart=restarts, try_sum=False, run_dir=Path(config.output_dir) / config.name,
        )  # fmt: skip
        with Wish() as wish:
            return controller.Controller(launch, wish).run()

    leave(guarded("rb launch", run))
