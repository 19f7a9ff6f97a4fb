"""The command `lethe`: its parser, error messages and exit status, and `lethe serve`.

The other commands are in modules of their own; `lethe.evaluation` adds more through an entry point.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import sys
from importlib.metadata import entry_points, version

from lethe.server.cli import fit, judge, keys, policies
from lethe.server.observability import malloc
from lethe.server.process import sockets
from lethe.server.settings import Settings, check_exposure, read_settings

# The command can't run. argparse exits with the same status for invalid arguments.
EXIT_ERROR = 2
# 128 + SIGINT, as shells report it.
EXIT_INTERRUPTED = 130


def serve(args: argparse.Namespace, settings: Settings) -> int:
    """Run the gateway until SIGINT or SIGTERM."""
    check_exposure(settings)
    _raise_open_files_limit()
    # Ports in use are reported before the policies are loaded, which may take a while.
    sockets.bind_socket(settings.host, settings.port, "LETHE_PORT").close()
    if settings.admin_address is not None:
        sockets.bind_socket(*settings.admin_address, "LETHE_ADMIN_PORT").close()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if settings.workers > 1:
        from lethe.server.process import supervisor

        return supervisor.serve_with_workers(settings)
    import uvicorn

    from lethe.server.admission.connection_limits import uvicorn_options
    from lethe.server.app import create_app

    malloc.return_large_blocks()
    app = create_app(settings)
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        log_config=None,
        timeout_graceful_shutdown=settings.drain_timeout_s,
        **uvicorn_options(settings, app.state.metrics),
    )
    return 0


def _raise_open_files_limit() -> None:
    """Allow as many open files as the system permits: a request needs two connections, and 1,024 is a usual default."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def run_doctor(args: argparse.Namespace, settings: Settings) -> int:
    """Check the settings, policies, artifacts, model folder and vLLM, and say how to fix what is wrong. Exit status 1
    if anything is."""
    # Imported only here: an HTTP client takes longer to import than `lethe fit --add` takes.
    from lethe.server.cli.doctor import doctor

    return doctor(args, settings)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each sets `run`, a function of the arguments and the settings."""
    parser = argparse.ArgumentParser(
        prog="lethe",
        description="Lethe is an OpenAI-compatible gateway in front of vLLM. It makes a model answer as if it had "
        "never learned what it should forget. Settings are LETHE_* environment variables; docs/reference/settings.md "
        "lists them. Begin with `lethe fit`, write a policy file, check the set-up with `lethe doctor`, then run "
        "`lethe serve`.",
        epilog="Exit status: 0 success, 1 the command found a problem, 2 it could not run, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"lethe {version('lethe-gateway')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    command = commands.add_parser("serve", help="run the gateway", description=serve.__doc__)
    command.set_defaults(run=serve)
    fit.add_command(commands)
    judge.add_command(commands)
    keys.add_commands(commands)
    command = commands.add_parser("doctor", help="check the set-up and vLLM", description=run_doctor.__doc__)
    command.set_defaults(run=run_doctor)
    # lethe.evaluation adds its commands here: the server must not import it.
    for entry in sorted(entry_points(group="lethe.commands"), key=lambda entry: entry.name):
        entry.load()(commands)
    policies.add_commands(commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Exits with status 0 (success), 1 (a problem was found), 2 (it can't run) or 130."""
    args = build_parser().parse_args(argv)
    try:
        status = args.run(args, read_settings())
    except BrokenPipeError:
        # The reader of a pipe has ended (`lethe judge … | head`). Redirect stdout, so that flushing at exit succeeds.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except (ValueError, OSError) as error:
        print(f"lethe {args.command}: {error}", file=sys.stderr)
        status = EXIT_ERROR
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    main()
