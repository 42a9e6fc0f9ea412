"""``rb serve``, the endpoints for programs, and ``rb demo``, the same server with a page to draw boxes on."""

from __future__ import annotations

import argparse
import os
from contextlib import suppress
from pathlib import Path

from rb.core.device import add_device
from rb.core.exit_codes import FINISHED
from rb.core.output import say
from rb.inference.commands import add_foundation

# Longer than clients and proxies keep an idle connection (nginx, load balancers: 60 s): with uvicorn's 5 s one that is just sent to is reset.
KEEP_ALIVE_S = 75
STOP_S = 10  # what runs may finish within, after SIGTERM, in seconds


def add_serve(parser: argparse.ArgumentParser) -> None:
    """``rb serve``."""
    _add(parser)
    parser.set_defaults(run=run_serve, page=False)


def add_demo(parser: argparse.ArgumentParser) -> None:
    """``rb demo``."""
    _add(parser)
    parser.set_defaults(run=run_serve, page=True)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        action="append",
        required=True,
        metavar="[NAME=]DIR",
        help="run folder, checkpoint or export; may be repeated: all on one foundation, held once",
    )
    parser.add_argument("--no-base", action="store_true", help="without the models base and crops")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to bind to (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--token-env", metavar="NAME", help="environment variable with the bearer token that requests must send"
    )
    parser.add_argument(
        "--queue", type=int, default=64, metavar="N", help="requests that may wait or run (default: 64); more get 429"
    )
    parser.add_argument(
        "--deadline", type=float, default=60.0, metavar="S", help="longest wait of a request in seconds (default: 60)"
    )
    parser.add_argument("--max-mb", type=int, default=16, metavar="MB", help="largest body of a request (default: 16)")
    add_foundation(parser)
    add_device(parser)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; what runs then may finish."""
    if not 0 <= args.port < 65536:
        raise ValueError(f"--port {args.port}: must be 0 to 65535")
    for name, value in (("--queue", args.queue), ("--deadline", args.deadline), ("--max-mb", args.max_mb)):
        if not 0 < value < 1e6:
            raise ValueError(f"{name} {value}: must be more than 0 and less than a million")
    token = _token(args.token_env)
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"serving needs the package {error.name}: pip install 'regionblip[serve]'") from None
    from rb.serving.adapters import load_adapters
    from rb.serving.app import make_app
    from rb.serving.engine import Engine, EngineLimits
    from rb.serving.forms import Limits
    from rb.serving.page_files import add_page

    adapters = load_adapters(
        [_named(word) for word in args.checkpoint], args.foundation, args.device, args.allow, with_base=not args.no_base
    )
    engine = Engine(adapters, EngineLimits(waiting=args.queue))
    app = make_app(engine, Limits(body_bytes=args.max_mb << 20, deadline_s=args.deadline), token)
    if args.page:
        add_page(app)
    config = uvicorn.Config(
        app,
        args.host,
        args.port,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_S - 2,  # the engine's thread and the end of the process take the rest
        server_header=False,
        lifespan="on",
    )
    socket = config.bind_socket()
    socket.listen()  # whoever reads the line below may connect at once
    port = socket.getsockname()[1]
    say(f"http://{args.host}:{port}: {', '.join(adapters)}")
    server = uvicorn.Server(config)
    # uvicorn sends itself the signal again once it has finished.
    with suppress(SystemExit, KeyboardInterrupt):
        server.run(sockets=[socket])
    return FINISHED


def _token(variable: str | None) -> str | None:
    if variable is None:
        return None
    token = os.environ.get(variable, "")
    if not token:
        raise ValueError(f"--token-env {variable}: this environment variable is not set; put the token in it")
    return token


def _named(word: str) -> tuple[str | None, Path]:
    """``NAME=DIR`` or ``DIR``; a folder whose name holds "=" needs a name before it."""
    name, equals, folder = word.partition("=")
    return (name, Path(folder)) if equals and folder and "/" not in name else (None, Path(word))
