"""All commands, and what an error becomes: one message on stderr, exit code 2 for bad input, 3 if the machine failed."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from flowstill.cli.check import check
from flowstill.cli.demo import demo
from flowstill.cli.distill import distill
from flowstill.cli.evaluate import evaluate
from flowstill.cli.failures import failure_of_machine
from flowstill.cli.inspect import inspect
from flowstill.cli.listing import show_list
from flowstill.cli.memory import keep_freed_memory
from flowstill.cli.reproduce import reproduce
from flowstill.cli.train import train
from flowstill.errors import FlowstillError, command_line_words, readable

BAD_INPUT, MACHINE_FAILED, INTERRUPTED = 2, 3, 130
WRONG_PATHS = {errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL}  # the user's mistakes

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo)
app.command("distill")(distill)
app.command("train")(train)
app.command("reproduce")(reproduce)
app.command("check")(check)
app.command("inspect")(inspect)
app.command("evaluate")(evaluate)
app.command("list")(show_list)


@app.callback(invoke_without_command=True)
def flowstill(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Teach a small vision network by the flow between the layers of a large one.

    Start with `flowstill demo`: a teacher, a student alone and a taught student, in a few minutes.
    """
    if version:
        from flowstill import __version__

        print(f"flowstill {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: what follows the command's name; by default the arguments of the process.

    Returns:
        The exit code: 0, 2 for bad input, 3 if a job diverged or the machine failed (disk full, out of memory), 130 if
            interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows must not stop a command
    # Read when torch starts its threads. Sleeping threads cost little on idle cores; on shared cores, spinning threads
    # can take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed_memory()
    command = typer.main.get_command(app)
    try:
        with command_line_words():
            code = command.main(arguments, prog_name="flowstill", standalone_mode=False)
    except FlowstillError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if failure := failure_of_machine(error):
            print(f"error: {readable(failure)}", file=sys.stderr)
            return BAD_INPUT if isinstance(error, OSError) and error.errno in WRONG_PATHS else MACHINE_FAILED
        usage = getattr(error, "format_message", None)  # typer's errors about a command, option or value have it
        if usage is None:
            raise
        context = getattr(error, "ctx", None)
        hint = f"\nSee `{context.command_path} --help`." if context else ""
        text = usage().replace("Value error, ", "")  # pydantic's prefix, in some versions of typer
        print(f"error: {readable(text)}{hint}", file=sys.stderr)
        return BAD_INPUT
    return code if isinstance(code, int) else 0
