"""What users write themselves: found by its name, and explained in one message where it fails."""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
import types
from collections.abc import Collection, Iterator
from typing import Any

from trainer.config import TrainConfig
from trainer.config.own import is_own, parts
from trainer.errors import UsageError

# Examples of a trial: a number that no code would take for the size of a batch.
TRIAL_BATCH = 3

# Of a message of somebody else's.
_LONGEST = 300


@dataclasses.dataclass(frozen=True)
class Own:
    """Something of the user's own.

    Attributes:
      flag: as it was given, such as "--model=/home/me/own.py:Network".
      form: what it should look like, for messages.
      value: what the name stands for.
      file: path of its source, "" if it has none.
      sha256: of that source, in hex, or "".
    """

    flag: str
    form: str
    value: Any
    file: str
    sha256: str

    def refusal(self, problem: str) -> UsageError:
        """Return the error that says what is wrong, and what would be right."""
        return _refusal(self.flag, problem, self.form)

    def check_takes(self, function: Any, call: str, *arguments: Any, **named: Any) -> None:
        """Refuse a function or a class that cannot be called with these arguments.

        Args:
          function: of the user's.
          call: as a line of Python, for the message.
          arguments: of the call.
          named: of the call.

        Raises:
          UsageError: it takes others.
        """
        if inspect.isclass(function):
            # The class of all nnx.Modules hides what the constructor takes.
            function, arguments = function.__init__, (None, *arguments)
        try:
            signature = inspect.signature(function)
        except ValueError:  # Nobody knows what it takes.
            return
        try:
            signature.bind(*arguments, **named)
        except TypeError as error:
            raise self.refusal(
                f"it is called as {call}, and does not take that: {error}"
            ) from error

    @contextlib.contextmanager
    def explained(self, what: str) -> Iterator[None]:
        """Turn whatever the user's code raises into one message that names its line.

        Args:
          what: is done meanwhile, for the message, such as "its constructor".
        """
        try:
            yield
        except UsageError:
            raise
        except (Exception, SystemExit) as error:
            raise self.refusal(f"{what} raises {_describe(error, self.file)}") from error


def load(flag: str, form: str) -> Own:
    """Return what a flag names.

    Args:
      flag: such as "--model=package.module:Network"; see `config.own`.
      form: what it should look like, for messages.

    Raises:
      UsageError: there is no such module, file or name in it, or it cannot be imported.
    """
    source, attribute = parts(flag.partition("=")[2])
    is_file = source.endswith(".py")
    try:
        module = _execute_file(source) if is_file else _import(source)
    except _NotFoundError as error:
        raise _refusal(flag, str(error), form) from error
    except (Exception, SystemExit) as error:
        file = source if is_file else ""
        raise _refusal(flag, f"importing it raises {_describe(error, file)}", form) from error
    if not hasattr(module, attribute):
        raise _refusal(flag, f"{source} {_describe_missing(attribute, module)}", form)
    value = getattr(module, attribute)
    file, sha256 = (source, module.__sha256__) if is_file else _source_of(value, module)
    return Own(flag, form, value, file, sha256)


def describe_array(array: Any) -> str:
    """Return dtype and shape of an array or a jax.ShapeDtypeStruct, such as float32[3,10]."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def digests_of_sources(
    config: TrainConfig, fields: Collection[str] = ("model", "optimizer", "augment")
) -> dict[str, str]:
    """Return the SHA-256, in hex, of the source files of what is the user's own.

    Args:
      config: of the run.
      fields: of the configuration that may name something of the user's own.

    Returns:
      Such as {"model": "ab12..."}, empty where all is built in.
    """
    names = {field: getattr(config, field) for field in fields}
    return {
        field: load(f"--{field}={name}", "").sha256 for field, name in names.items() if is_own(name)
    }


class _NotFoundError(Exception):
    """There is no such module or file; the message says where it was looked for."""


def _execute_file(path: str) -> types.ModuleType:
    """Return the module that a file makes; the digest is that of the bytes that were executed."""
    try:
        with open(path, "rb") as file:
            return _execute(path, file.read())
    except FileNotFoundError as error:
        folder, name = os.path.split(path)
        there = os.listdir(folder) if os.path.isdir(folder) else []
        near = difflib.get_close_matches(name, there, n=1)
        raise _NotFoundError(
            f"there is no file {path}" + (f" (did you mean {near[0]}?)" if near else "")
        ) from error
    except OSError as error:
        if error.filename != path:
            raise
        raise _NotFoundError(f"{path} cannot be read: {error.strerror}") from error


@functools.cache
def _execute(path: str, source: bytes) -> types.ModuleType:
    """Return the module that a source makes, once; files beside it can be imported from it."""
    module = types.ModuleType(path)
    module.__file__ = path
    module.__dict__["__sha256__"] = hashlib.sha256(source).hexdigest()
    # What is defined in it looks for its module here.
    sys.modules[path] = module
    with _importing_from(os.path.dirname(path)):
        exec(compile(source, path, "exec"), module.__dict__)
    return module


def _import(name: str) -> types.ModuleType:
    """Import a module, from the current folder too, whichever program this is."""
    try:
        with _importing_from(os.getcwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise _NotFoundError(
            f"there is no module {error.name} in {os.getcwd()}, on PYTHONPATH or among the "
            "installed packages; a file can be named by its path, such as path/file.py"
        ) from error


@contextlib.contextmanager
def _importing_from(folder: str) -> Iterator[None]:
    """While open, modules are also found in a folder; those that are installed come first."""
    before = list(sys.path)
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path[:] = before


def _source_of(value: Any, module: types.ModuleType) -> tuple[str, str]:
    """Return the file in which something is defined, or else of its module, and the SHA-256."""
    home = sys.modules.get(getattr(value, "__module__", None) or "", module)
    file = getattr(home, "__file__", None) or ""
    try:
        with open(file, "rb") as source:
            return file, hashlib.sha256(source.read()).hexdigest()
    except OSError:
        return "", ""


def _describe_missing(name: str, module: types.ModuleType) -> str:
    """Return what a module has instead of a name."""
    own = [
        each
        for each, value in vars(module).items()
        if not each.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, own, n=1)
    there = f"; it defines {', '.join(own)}" if own else "; it defines nothing"
    return f"has no {name}" + (f" (did you mean {near[0]}?)" if near else there)


def _describe(error: BaseException, file: str) -> str:
    """Return an error in one line, with the last line of the user's file on its way."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {text[:_LONGEST]}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{said.partition(' (')[0]} ({error.filename}, line {error.lineno})"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file
    ]
    if not frames:
        return said
    return f"{said} ({file}, line {frames[-1].lineno}: {frames[-1].line})"


def _refusal(flag: str, problem: str, form: str) -> UsageError:
    """Return the error of something of the user's own."""
    return UsageError(f"{flag}: {problem}" + (f"\n{form}" if form else ""))
