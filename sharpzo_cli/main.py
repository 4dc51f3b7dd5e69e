"""Entry point: runs the command and turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING

import typer

from sharpzo_cli.app import app
from sharpzo_cli.errors import explain, one_line
from sharpzo_cli.interrupts import ctrl_c_interrupts
from sharpzo_client.display import escaped

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130  # exit code of a command ended by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `sharpzo` and return its exit code.

    0 success; 1 the run failed; 2 the command line or an input is wrong; 130 Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # at any position
    try:
        with ctrl_c_interrupts():
            code = app(
                [word for word in words if word != "--debug"], "sharpzo", standalone_mode=False
            )
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _report(error, debug)
    return code if isinstance(code, int) else 0


def _report(error: Exception, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    line, code = explain(error)
    typer.echo(f"error: {escaped(one_line(line))}", err=True)
    return code
