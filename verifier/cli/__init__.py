"""The command `rmax`. Commands stand in a table here or in the entry-point group `rmax.commands`; they are loaded when
used.

So packages further right add commands without being imported from here, and `rmax --help` loads no PyTorch.
From a checkout that is not installed, `python -m verifier.cli` serves the built-in ones.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import threading
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

BUILT_IN = {
    "verify": ("verifier.cli.verify:command", "Prove a property of a network, or find a counterexample."),
    "check": ("verifier.cli.check:command", "Accept or refuse a proof file, independently of the search."),
    "bounds": ("verifier.cli.bounds:command", "Bound the outputs, one row a method, with times."),
    "sweep": ("verifier.cli.sweep:command", "Verify a whole benchmark: a CSV of networks and properties."),
    "attack": ("verifier.cli.attack:command", "Attack a network on a data set: how robust does it look?"),
    "radius": ("verifier.cli.radius:command", "How far can each input move before the network changes its mind?"),
    "lipschitz": ("verifier.cli.lipschitz:command", "How fast can outputs change? Constants, certified and estimated."),
    "demo": ("verifier.cli.demo:command", "Prove and attack the bundled digit networks, offline."),
}
PLANNED = ("report",)

EXIT_WRONG_USE = 2
EXIT_UNKNOWN = 3


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*BUILT_IN, *(e.name for e in _entry_points())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        where = BUILT_IN.get(cmd_name, (None,))[0]
        if where is None:  # the built-in ones need no look at every installed package, which takes 20 ms
            where = next((e.value for e in _entry_points() if e.name == cmd_name), None)
        if where is None:
            if cmd_name in PLANNED:
                raise click.UsageError(f"rmax {cmd_name} is not built yet", ctx)
            return None
        module, _, attribute = where.partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            if name in BUILT_IN:  # its summary stands here, so listing it imports nothing
                rows.append((name, BUILT_IN[name][1]))
            elif command := self.get_command(ctx, name):
                rows.append((name, command.get_short_help_str(limit=80)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _entry_points() -> tuple[EntryPoint, ...]:
    from importlib.metadata import entry_points
    return tuple(entry_points(group="rmax.commands"))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
             epilog="Start with `rmax demo`; `rmax verify --help` shows examples.")
@click.option("--debug", is_flag=True, help="Show tracebacks and the log of every stage.")
@click.option("-v", "--verbose", is_flag=True, help="Log every stage on stderr.")
@click.version_option(package_name="rmax", prog_name="rmax")
@click.pass_context
def cli(ctx: click.Context, debug: bool, verbose: bool) -> None:
    """How far can an input move before a network changes its mind? Proofs, counterexamples, bounds."""
    ctx.obj = {"debug": debug}
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(message)s")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code; exit code 1 is reserved for `falsified`."""
    leave(run(arguments))


def leave(code: int) -> NoReturn:
    """Exit without taking apart what the end of the process frees anyway: with PyTorch loaded that takes 0.08 s.

    What others can see of an exit still happens: exit handlers run and streams are flushed. A profiler or debugger
    that waits for `SystemExit`, other threads, and output that cannot be flushed get the ordinary exit.
    """
    watched = sys.getprofile() is not None or sys.gettrace() is not None
    if "torch" not in sys.modules or watched or threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # a closed pipe, a closed or a missing stream
        sys.exit(code)
    os._exit(code)


def run(arguments: list[str] | None = None) -> int:
    """The exit code of one command line. Python and click leave with 1 after an error, an interrupt or a
    closed pipe; here 1 means falsified, so each of them gets a code of its own."""
    debug = "--debug" in (sys.argv[1:] if arguments is None else arguments)
    try:
        code: Any = cli.main(args=arguments, prog_name="rmax", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return EXIT_WRONG_USE
    except (click.Abort, KeyboardInterrupt):
        click.echo("unknown  interrupted", err=True)
        return EXIT_UNKNOWN
    except SystemExit:  # click's answer to a closed pipe
        return EXIT_WRONG_USE
    except Exception as error:
        if debug:
            raise
        click.echo(f"Error: unexpected {type(error).__name__}: {error} (rmax --debug shows where)", err=True)
        return EXIT_UNKNOWN
