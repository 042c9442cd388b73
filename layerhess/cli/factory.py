"""Loads the user's Objective from ``package.module:factory`` or ``path/to/file.py:factory``."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from layerhess.cli.user_frames import innermost, raised
from layerhess.errors import InputError, LayerhessError
from layerhess.objective.interrupts import STOPS
from layerhess.objective.objective import Objective

FORMS = "package.module:factory or path/to/file.py:factory"


class UserCodeError(InputError):
    """The user's module or factory raised an exception, which is in ``__cause__``."""


def load_objective(target: str) -> Objective:
    """Import the module, call the factory, and return its Objective.

    The current folder is importable; for a file its own folder is too, as when Python runs it.

    Args:
        target: ``package.module:factory`` or ``path/to/file.py:factory``; the factory may be dotted (``Class.make``).

    Raises:
        InputError: the target is malformed or cannot be found, or the factory returns something else.
        UserCodeError: the user's module or factory raised; the sentence has the file and the line.
    """
    made, factory, name = _made(target, "the first argument", "; layerhess template prints a factory to start from")
    if not isinstance(made, Objective):
        returned = "None (is a return missing?)" if made is None else f"{_article(type(made).__name__)}"
        raise InputError(
            f"the factory {name} returned {returned}, not a layerhess.Objective",
            where=_definition(factory) or target,
            what_to_do="end it with: return layerhess.Objective(model, data, loss)",
        )
    return made


def load_data(target: str, flag: str) -> Any:
    """Call a factory of data; of an Objective that it returns, the data.

    Raises:
        InputError: as for :func:`load_objective`; it returned nothing.
    """
    made, factory, name = _made(target, flag)
    if made is None:
        raise InputError(
            f"the factory {name} returned None (is a return missing?)",
            where=_definition(factory) or target,
            what_to_do="end it with: return data",
        )
    return made.data if isinstance(made, Objective) else made


def load_function(target: str, flag: str) -> Callable[..., Any]:
    """Import the module and find the function, without calling it.

    Raises:
        InputError: the target is malformed or cannot be found. UserCodeError: the user's module raised.
    """
    return _found(target, flag)[0]


def _made(target: str, where: str, hint: str = "") -> tuple[Any, Callable[[], Any], str]:
    """What the factory returns, the factory, and its name."""
    factory, name, place = _found(target, where, hint)
    _refuse_arguments(factory, name, place)
    return _call(factory, target), factory, name


def _found(target: str, where: str, hint: str = "") -> tuple[Callable[..., Any], str, str]:
    """The function, its name, and its module as it was given."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name or name.startswith(("/", "\\")):
        raise InputError(
            f"{target!r} does not say which function to call", where=where, what_to_do=f"write {FORMS}{hint}"
        )
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    module = _from_file(place) if is_file else _from_name(place)
    return _attribute(module, name, place), name, place


def _from_file(place: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
        hint = difflib.get_close_matches(path.name, there, n=3, cutoff=0.5) or there[:5]
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(
            f"the file {place} {what}",
            where=str(path.parent.resolve()),
            what_to_do="perhaps you meant " + " or ".join(hint) if hint else f"give {FORMS}",
        )
    path = path.resolve()
    for folder in (str(path.parent), os.getcwd()):
        if folder not in sys.path:
            sys.path.insert(0, folder)
    name = path.stem if path.stem.isidentifier() and path.stem not in sys.modules else f"_layerhess_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{place} is not a Python file", where=str(path), what_to_do="give a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that its classes can be pickled, as DataLoader workers need
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise _blamed(error, f"importing {place}") from error
    return module


def _from_name(place: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if not all(part.isidentifier() for part in place.split(".")):
        raise InputError(f"{place!r} is no module name", where=place, what_to_do=f"write {FORMS}")
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        parts = place.split(".")
        if error.name not in [".".join(parts[: i + 1]) for i in range(len(parts))]:
            raise _blamed(error, f"importing {place}") from error
        here = [p.stem for p in Path.cwd().glob("*.py")] + [p.parent.name for p in Path.cwd().glob("*/__init__.py")]
        close = difflib.get_close_matches(parts[0], here, n=3, cutoff=0.5)
        raise InputError(
            f"there is no module named {error.name}",
            where=f"{Path.cwd()} and the installed packages",
            what_to_do=f"perhaps you meant {' or '.join(close)}" if close else f"give {FORMS}",
        ) from error
    except BaseException as error:
        raise _blamed(error, f"importing {place}") from error


def _attribute(module: ModuleType, name: str, place: str) -> Callable[..., Any]:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            functions = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            own = [n for n in functions if getattr(getattr(module, n), "__module__", None) == module.__name__]
            hint = difflib.get_close_matches(name, functions, n=3, cutoff=0.5) or own[:5]
            raise InputError(
                f"{place} has no function named {name}",
                where=str(getattr(module, "__file__", place)),
                what_to_do="perhaps you meant " + " or ".join(hint)
                if hint
                else "define it: layerhess template shows how",
            )
        found = getattr(found, part)
    if not callable(found):
        raise InputError(
            f"{name} is {_article(type(found).__name__)}, not a function",
            where=str(getattr(module, "__file__", place)),
            what_to_do=f"wrap it in a function that returns it: def factory(): return {name}",
        )
    return found  # type: ignore[no-any-return]


def _refuse_arguments(factory: Callable[..., Any], name: str, place: str) -> None:
    try:
        inspect.signature(factory).bind()
    except TypeError as error:
        raise InputError(
            f"the factory {name} cannot be called without arguments ({error})",
            where=_definition(factory) or place,
            what_to_do="give its parameters defaults, or write a function without parameters that calls it",
        ) from None
    except ValueError:  # no signature: calling it will tell
        pass


def _call(factory: Callable[[], Any], target: str) -> Any:
    try:
        return factory()
    except LayerhessError:
        raise
    except BaseException as error:
        raise _blamed(error, f"calling the factory {target}") from error


def _blamed(error: BaseException, doing: str) -> BaseException:
    """The exception to raise instead of one of the user's code; Ctrl-C and SIGTERM are not replaced."""
    if isinstance(error, STOPS):
        return error
    if isinstance(error, LayerhessError):
        return error
    if isinstance(error, SystemExit):
        return UserCodeError(
            f"{doing} ended the process (sys.exit({error.code!r}))",
            where=innermost(error),
            what_to_do="keep scripts' main code under: if __name__ == '__main__':",
        )
    return raised(error, doing, UserCodeError)


def _definition(function: Callable[..., Any]) -> str:
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):
        return ""


def _article(noun: str) -> str:
    return f"an {noun}" if noun[:1].lower() in "aeiou" else f"a {noun}"
