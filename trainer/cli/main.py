"""From an argument list to a command and its exit status."""

import logging
import sys
import traceback

import absl.logging

from trainer.cli.actions import ACTIONS
from trainer.cli.arguments import parse
from trainer.cli.help import help_text
from trainer.errors import Interrupted, RunError, Stopped, UsageError
from trainer.processes import output, signals


def main(argv: list[str] | None = None) -> None:
    """Run one command and leave with its exit status.

    Args:
      argv: program name and arguments, sys.argv if None.
    """
    with signals.interruptible():
        output.protect()
        status = run(sys.argv if argv is None else argv)
        if (problem := output.problem()) is not None:
            print(f"error: standard output: {problem.strerror}", file=sys.stderr)
            status = status or RunError.exit_status
    # Threads of a save that failed, and jax among several processes, may wait for minutes.
    signals.leave(status, at_once=status not in (0, Stopped.exit_status))


def run(argv: list[str]) -> int:
    """Run one command and return its exit status; errors end as one message on standard error.

    Args:
      argv: program name and arguments.

    Returns:
      0 done, or the exit status of the error, see `trainer.errors`.
    """
    workdir = None
    try:
        arguments = parse(argv)
        if arguments.help:
            print(help_text(arguments.command if arguments.command_given else None))
            return 0
        if arguments.version:
            from importlib.metadata import version

            print(f"cyclic-trainer {version('cyclic-trainer')}")
            return 0
        _log_to_stderr()
        workdir = arguments.workdir
        return ACTIONS[arguments.command](arguments)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except (Stopped, Interrupted) as stopped:
        print(stopped, file=sys.stderr)
        return stopped.exit_status
    except Exception as error:
        return _report_unforeseen(error, workdir)


def _report_unforeseen(error: Exception, workdir: str | None) -> int:
    """Say what nobody turned into a message of its own, and return the status of a failed run."""
    from trainer.workdir import storage

    if workdir and storage.is_remote(workdir) and storage.is_outage(error):
        print(
            f"error: --workdir={workdir} does not answer: {storage.reason(error)}; "
            f"{storage.remedy(workdir)} and run the same command: older checkpoints are intact",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
        print(
            "error: this failure was not foreseen; older checkpoints are intact, and the same "
            "command resumes from the newest",
            file=sys.stderr,
        )
    return RunError.exit_status


def _log_to_stderr() -> None:
    """Send the trainer's log lines to standard error, above a progress bar if there is one."""
    import tqdm

    class Handler(logging.Handler):
        """Writes plain lines that do not break a bar."""

        def emit(self, record: logging.LogRecord) -> None:
            """Write one line."""
            tqdm.tqdm.write(self.format(record), file=sys.stderr)

    # Orbax prints pages about a failed save, which the trainer reports in one line.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logger = logging.getLogger("trainer")
    logger.handlers = [Handler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False
