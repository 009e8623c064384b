"""The `tailrace` command: names the commands, and turns every failure into one line and an exit status.

=====  ===================================================================================================
0      done
1      the stream or run has an ending other than done; bytes are not of their format; the demo's bytes differ
2      the command could not do its work: usage, configuration, a gateway's refusal, the broker
130    Ctrl-C (128 plus the number of any signal that cut a command short)
=====  ===================================================================================================
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence

import typer

from tailrace.commands import about, convert, demo, inspect, kafka, manage, output, run, serve, streams
from tailrace.errors import TailraceError

app = typer.Typer(
    name="tailrace",
    help="Streamed answers that survive: durable, resumable, byte-exact streams on a message broker.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        output.data(context.get_help())
        raise typer.Exit(output.FAILED)


for _command in (
    *(demo.demo, serve.up, serve.gateway, serve.worker),
    *(run.run, streams.publish, streams.read),
    *(manage.status, manage.cancel, manage.delete, manage.ls),
    *(inspect.inspect, convert.convert),
    *(about.settings, about.version),
):
    app.command()(_command)
app.add_typer(kafka.app)

# typer carries its own copy of click, or uses click itself, by version: what it raises for a wrong call is found here
_WRONG_CALL: type[Exception] = next(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind.__name__ == "ClickException"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit status."""
    _hold_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character still gets the rest
    try:
        return _main(arguments)
    except TailraceError as error:
        if isinstance(error, output.OutputFailed):
            _drop_stdout()
        output.note(output.error_line(error))
        return output.exit_status(error)
    except _WRONG_CALL as error:
        said = error.format_message() if isinstance(error, typer.BadParameter) else getattr(error, "message", "")
        output.note(f"{output.one_line(said).rstrip('.')} [usage]. `tailrace --help` shows the commands.")
        return output.FAILED
    except (KeyboardInterrupt, typer.Abort):
        return 128 + signal.SIGINT
    except output.ReaderGone:
        _drop_stdout()
        return 128 + signal.SIGPIPE
    except Exception as error:
        # the last line: nobody is shown a traceback unasked
        logging.getLogger("tailrace").debug("the command failed", exc_info=error)
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        output.note(f"{output.one_line(said)} [internal]. TAILRACE_LOG_LEVEL=debug shows more; please report it.")
        return output.FAILED


def _main(arguments: Sequence[str] | None) -> int:
    command = typer.main.get_command(app)
    given = list(arguments) if arguments is not None else None
    status = command.main(args=given, prog_name="tailrace", standalone_mode=False)
    sys.stdout.flush()
    return status if isinstance(status, int) else output.OK


def _hold_descriptors() -> None:
    """A standard stream that is closed fails where it is used. Else the next file or socket would take its number, and
    be written to, or read, for it."""
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _drop_stdout() -> None:
    """Whoever read this is gone: the interpreter's own last flush must not complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
