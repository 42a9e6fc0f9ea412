"""An S3 server on loopback (moto's) with the files of some folders, for measurements: `python -m tests.support.s3_server FOLDER ... -- COMMAND ...`.

The command runs with the variables by which any S3 client finds the server, and reads the folders as `s3://shards/NAME`. The server is a
process of its own, so its time is not the command's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.stores import S3


def main(words: list[str]) -> int:
    """Serve, run the command, and return its exit code."""
    split = words.index("--")
    server = S3()
    for folder in map(Path, words[:split]):
        server.upload(folder, folder.name)
    code = subprocess.run(words[split + 1 :], env=os.environ | server.environment, check=False).returncode
    server.stop()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
