"""How a worker process finds a handler's function: by the name of its module and its own, as ``import`` does.

``reference_of`` and ``check_reference`` are the parent's half, ``resolve`` the child's.
"""

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, Final

from msgspec import Struct

from callboard.runtime.core.errors import HandlerError

__all__ = ["Reference", "check_reference", "reference_of", "resolve"]

_MAIN: Final = ("__main__", "__mp_main__")
"""The script that was started; the second name is what ``multiprocessing`` runs it as in a child."""


class Reference(Struct, frozen=True):
    """Where a function is."""

    module: str
    name: str
    file: str | None
    """The module's file, for one that was loaded by its path and that an import would not find."""


def reference_of(function: Callable[..., Any], where: str) -> Reference:
    """Where a child finds ``function``. Raises HandlerError if it is nothing that a child could import by name."""
    rule = "a handler of process=True is a plain function at module level, which a child process imports by its name"
    if inspect.iscoroutinefunction(function):
        raise HandlerError(f"{where} is async: {rule}; leave process=True out, or make it a plain def")
    if not isinstance(function, FunctionType):
        raise HandlerError(f"{where} is a {type(function).__name__} and no function: {rule}")
    name = function.__qualname__
    if name == "<lambda>" or "<locals>" in name:
        raise HandlerError(f"{where} is a {'lambda' if '<lambda>' in name else 'nested function'}: {rule}")
    if "." in name:
        raise HandlerError(f"{where} is a method: {rule}")
    module = sys.modules.get(function.__module__)
    file = getattr(module, "__file__", None)
    if module is None or (file is None and getattr(module, "__spec__", None) is None):
        raise HandlerError(
            f"{where} is in {function.__module__!r}, which a child process cannot import: {rule}; put it into a file"
        )
    spec_name = getattr(module.__spec__, "name", "") if module.__spec__ is not None else ""
    if function.__module__ in _MAIN and (spec_name == "__main__" or spec_name.endswith(".__main__")):
        raise HandlerError(f"{where} is in a __main__.py, which a child process does not import: move it to a module")
    return Reference(function.__module__, name, None if file is None else os.path.abspath(file))


def check_reference(function: Callable[..., Any], where: str) -> None:
    """Once the module is loaded: raises HandlerError if its name leads to something else than ``function``."""
    found = getattr(sys.modules.get(function.__module__), function.__name__, None)
    if found is not function:
        raise HandlerError(
            f"{where}: a child process would not find it, {function.__module__}.{function.__name__} is {found!r};"
            " give it a name of its own, and let the decorator of callboard be the outermost"
        )


def resolve(reference: Reference) -> Callable[..., Any]:
    """The function. Raises whatever importing its module raises, AttributeError if it is not there."""
    function: Callable[..., Any] = getattr(_module(reference), reference.name)
    return function


def _module(reference: Reference) -> ModuleType:
    if reference.module in _MAIN:
        return sys.modules["__main__"]
    if reference.module in sys.modules:
        return sys.modules[reference.module]
    if reference.file is None or _import_finds(reference.module, reference.file):
        return importlib.import_module(reference.module)
    spec = importlib.util.spec_from_file_location(reference.module, reference.file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[reference.module] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[reference.module]
        raise
    return module


def _import_finds(name: str, file: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return False
    if spec is None:
        return False
    # What is in no file of its own (an archive) is found by name only.
    return not os.path.isfile(file) or (
        spec.origin is not None and os.path.realpath(spec.origin) == os.path.realpath(file)
    )
