"""The commands, and how their errors reach the user: in one line, with an exit status."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any

import typer

from stepvar import __version__
from stepvar.cli.batch import batch
from stepvar.cli.calibrate import calibrate
from stepvar.cli.convert import convert
from stepvar.cli.demo import demo
from stepvar.cli.evaluate import evaluate, report
from stepvar.cli.generate import generate
from stepvar.cli.listing import info, methods, models
from stepvar.cli.plan import plan
from stepvar.cli.serve import serve
from stepvar.cli.signals import ending_signals
from stepvar.cli.verify import verify
from stepvar.cli.web import web
from stepvar.errors import StepvarError, UsageError, printable
from stepvar.utils.log import logger

FAILED, USAGE = 1, 2
"""Exit statuses."""

# The base classes of typer's errors are its own in new versions and click's in older ones.
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Generate images and videos with visual autoregressive models, faster with token pruning.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted, 143 terminated.",
)
for command in (generate, batch, demo, plan, calibrate, methods, models, verify, convert, info, web, serve):
    app.command()(command)
app.command("eval")(evaluate)
app.command()(report)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"stepvar {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error came from; also after a command.")
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: instead of those of the process.

    Returns:
        The exit status.
    """
    arguments, debug = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    with ending_signals() as came:
        try:
            with warnings.catch_warnings(), _any_text(sys.stdout), _logging(arguments, debug):
                warnings.simplefilter("default")
                warnings.showwarning = lambda message, *_, **__: logger.warning("%s", message)
                status = _run(arguments or ["--help"])
                if status == 128 + signal.SIGINT:  # typer's answer to every KeyboardInterrupt
                    raise KeyboardInterrupt
                if sys.stdout is not None:
                    sys.stdout.flush()  # here, where a full disk still has an answer
        except SystemExit as stop:  # a closed pipe
            status = stop.code if isinstance(stop.code, int) else FAILED
        except BaseException as error:
            if debug:
                traceback.print_exc()
            status = _failed(error, arguments, came)
    return status


def _failed(error: BaseException, arguments: list[str], came: list[int]) -> int:
    """Says what went wrong; returns the exit status."""
    if came or isinstance(error, (KeyboardInterrupt, typer.Abort)):
        number = came[0] if came else signal.SIGINT
        _say("interrupted" if number == signal.SIGINT else "terminated")
        return 128 + number
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, OSError) and error.errno == errno.EPIPE and error.filename is None:
        _drop_stdout()  # who read it has gone
        return FAILED
    message, status = _explain(error, arguments)
    _say(f"error: {message}")
    return status


@contextmanager
def _any_text(stream: Any) -> Iterator[None]:
    """Within it, a stream writes what its encoding lacks as escapes, rather than fail when the work is done."""
    errors = getattr(stream, "errors", None)
    if errors != "strict" or not hasattr(stream, "reconfigure"):
        yield
        return
    stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        stream.reconfigure(errors=errors)


def _drop_stdout() -> None:
    """Lets what could not be written go, so that Python does not try again at its end."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _SayingHandler(logging.Handler):
    """Shows records of the log as the command line shows errors."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        _say(f"{prefix}{record.getMessage()}")


@contextmanager
def _logging(arguments: Sequence[str], debug: bool) -> Iterator[None]:
    """Shows the log of the library on stderr: warnings, and how long runs get on unless ``--quiet``."""
    handler, level, passed_on = _SayingHandler(), logger.level, logger.propagate
    quiet = any(argument in ("--quiet", "-q") for argument in arguments)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = passed_on


def _run(arguments: list[str]) -> int:
    status: Any = typer.main.get_command(app).main(arguments, prog_name="stepvar", standalone_mode=False, obj=arguments)
    return status if isinstance(status, int) else 0


def _take_debug(arguments: list[str]) -> tuple[list[str], bool]:
    """Accepts ``--debug`` anywhere before ``--``."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    front = [argument for argument in arguments[:end] if argument != "--debug"]
    return front + arguments[end:], len(front) < end


def _explain(error: Exception, arguments: list[str]) -> tuple[str, int]:
    """What to say about an error, and the exit status."""
    if isinstance(error, _ParserError):
        return _parser_message(error, arguments), USAGE
    if isinstance(error, StepvarError):
        return str(error), USAGE if isinstance(error, UsageError) else FAILED
    if _out_of_memory(error):
        return "out of memory; generate fewer images at once, or use a smaller --resolution or --dtype", FAILED
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another place", FAILED
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EIO):
        _drop_stdout()
        return f"standard output: {error.strerror}; the files are written, the text is not", FAILED
    return f"internal error: {type(error).__name__}: {error}; run with --debug", FAILED


def _parser_message(error: Any, arguments: list[str]) -> str:
    message = error.format_message().strip().rstrip(".")
    value = _value_given(getattr(getattr(error, "param", None), "opts", ()), arguments)
    if value is not None and repr(value) not in message:
        message = f"{message} (given {value!r})"
    where = error.ctx.command_path if getattr(error, "ctx", None) is not None else "stepvar"
    return f"{message}; see '{where} --help'"


def _value_given(option: Sequence[str], arguments: list[str]) -> str | None:
    """What the user wrote for an option, which not every version of typer says."""
    for here, following in zip(arguments, [*arguments[1:], None], strict=True):
        name, equals, value = here.partition("=")
        if name in option:
            return value if equals else following
    return None


def _out_of_memory(error: Exception) -> bool:
    # By name, so that PyTorch need not be imported to report an error.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _say(text: str) -> None:
    if sys.stderr is not None:  # as in programs without a console
        print(f"stepvar: {printable(' '.join(text.split()))}", file=sys.stderr)
