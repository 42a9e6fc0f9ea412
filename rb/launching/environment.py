"""What agents and ranks get of the controller's environment, and how: by the job file, never on a command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rb.core.stopping import PARENT_VARIABLE
from rb.launching.secrets import ENVIRONMENT_FILE, clean_environment, read_environment_file, secret_variables

# Prefixes of variables that mean the same on every node.
SHARED = (
    "DS_",
    "GLOO_",
    "HF_",
    "MKL_",
    "MLFLOW_",
    "NCCL_",
    "OMP_",
    "RB_",
    "TOKENIZERS_",
    "TORCH_",
    "TRANSFORMERS_",
    "AWS_",
    "GIT_PYTHON_",
)
OF_THIS_PROCESS = (PARENT_VARIABLE, "RB_ATTEMPT", "RB_HEARTBEAT", "RB_AGENT_RESULT", "DS_ENV_FILE")
PER_NODE = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")  # set on every node for itself, unless the user has set them


def shared_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What every node gets: known prefixes, secrets, and the lines of `.deepspeed_env` (home, then working directory), as DeepSpeed exports them.

    Raises:
        ValueError: a line of such a file is no ``NAME=value``.
    """
    found = {name: value for name, value in environ.items() if name.startswith(SHARED)}
    found |= secret_variables(environ)
    home = os.path.expanduser("~")  # noqa: PTH111 (Path's raises where there is no home)
    for folder in (Path(home), Path()):
        file = folder / ENVIRONMENT_FILE
        if file.is_file():
            found |= read_environment_file(file)
    return {name: value for name, value in found.items() if name not in OF_THIS_PROCESS}


def launcher_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What the launcher's own process gets: nothing secret, since launchers put variables on command lines."""
    return {name: value for name, value in clean_environment(environ).items() if name not in OF_THIS_PROCESS}


def node_variables(facts: Mapping[str, Any], num_nodes: int, shared: Mapping[str, str]) -> dict[str, str]:
    """Variables of one node's ranks: the interface that leads to the other nodes, where there are others."""
    interface = facts.get("interface") or {}
    name = str(interface.get("name") or "") if isinstance(interface, Mapping) else ""
    if num_nodes == 1 or not name:
        return {}
    own = {
        "GLOO_SOCKET_IFNAME": name,
        "NCCL_SOCKET_IFNAME": f"={name}",
    }  # "=": this very name, not all that begin with it
    return {variable: value for variable, value in own.items() if variable not in shared}
