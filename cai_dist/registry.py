"""Strategies by name: a built-in one, or `package.module:object` of one's own.

Whatever a run file lets one choose (an algorithm, a schedule, an engine, a reward, ...) is either a name that this
package knows or the import path of an object. Config looks at the form alone; what a path names is imported by the
check before a run, by the run, and by the workers, which have the driver's PYTHONPATH. Its source file is hashed into
the fingerprint of the stage that uses it: other source, another result.
"""

from __future__ import annotations

import asyncio
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import queue
import re
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from cai_dist.errors import CaiError, ConfigError, one_line

PATH_PATTERN = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
T = TypeVar("T")


@dataclass(frozen=True)
class Signature:
    """How an object of one's own is called, and what the object that the call gives (or that a class makes) must have.

    `arguments` and `keywords` are names, for messages; keywords are passed by name. `protocol`: the protocol that a
    class must implement; None: the call's answer is all that matters.
    """

    arguments: tuple[str, ...]
    keywords: tuple[str, ...] = ()
    protocol: type | None = None

    def problem(self, found: Any) -> str:
        """Why `found` does not fit, in a line; "" where it does."""
        shown = ", ".join([*self.arguments, *(f"{name}=…" for name in self.keywords)])
        if not callable(found):
            return f"must be callable with ({shown}), and is a {type(found).__name__}"
        try:
            inspect.signature(found).bind(*self.arguments, **dict.fromkeys(self.keywords))
        except TypeError as error:
            return f"must be callable with ({shown}): {error}"
        except ValueError:
            pass  # a callable of C that does not tell its arguments
        if self.protocol is None or not isinstance(found, type):
            return ""
        lacking = [name for name in methods_of(self.protocol) if not hasattr(found, name)]
        return f"lacks {', '.join(lacking)} of the protocol {self.protocol.__name__}" if lacking else ""


class Registry(Generic[T]):
    """The strategies of one kind. `key`: of the run file that chooses one, for messages. `built_in`: name -> what
    gives the strategy, called when that is asked for (so that nothing heavy is imported before)."""

    def __init__(self, key: str, built_in: Mapping[str, Callable[[], T]], signature: Signature) -> None:
        self._key, self._built_in, self._signature = key, built_in, signature

    def resolve(self, name: str) -> T:
        """The strategy of a built-in name or of `package.module:object`. Raises ConfigError, one line, for a name that
        is neither, a module or an object that is not there, and an object that does not fit."""
        if name in self._built_in:
            return self._built_in[name]()
        if not is_path(name):
            known = ", ".join(self._built_in)
            raise ConfigError(f"{self._key}={name}: must be one of {known}, or package.module:object")
        return cast(T, find_object(name, self._key, self._signature))


def is_path(name: str) -> bool:
    """Whether `name` has the form `package.module:object`."""
    return re.fullmatch(PATH_PATTERN, name) is not None


@functools.lru_cache(maxsize=256)
def find_object(path: str, key: str, signature: Signature | None = None) -> Any:
    """The object that `path` (`package.module:object`) names; `key` is the setting that names it.

    Raises ConfigError, one line: no such module, a module that fails while it is imported, no such object in it, an
    object that does not fit `signature`.
    """
    module, _, name = path.partition(":")
    _spec(path, key)
    try:
        loaded = importlib.import_module(module)
    except CaiError:
        raise
    except Exception as error:
        raise ConfigError(f"{key}={path}: the module {module} cannot be imported: {one_line(error)}") from error
    if not hasattr(loaded, name):
        near = difflib.get_close_matches(name, [other for other in vars(loaded) if not other.startswith("_")], 1)
        raise ConfigError(
            f"{key}={path}: the module {module} has no {name}" + (f"; did you mean {near[0]}?" if near else "")
        )
    found = getattr(loaded, name)
    if signature is not None and (problem := signature.problem(found)):
        raise ConfigError(f"{key}={path}: {problem}")
    return found


class NoAnswer(TimeoutError):
    """A call of somebody's own object that has not come back in time."""


def call_within(seconds: float, call: Callable[[], Any]) -> Any:
    """What a call of somebody's own object gives: awaited where it is to be, and a list of what an iterator gives.
    Raises NoAnswer where that takes longer than `seconds`, and whatever the call raises.

    The call is in a thread that nobody waits for at the end: one that hangs cannot be broken off, only left behind.
    """
    answers: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            found = call()
            found = asyncio.run(_awaited(found)) if inspect.isawaitable(found) else found
            answers.put((list(found) if isinstance(found, Iterator) else found, None))
        except Exception as error:
            answers.put((None, error))

    threading.Thread(target=work, name="own object", daemon=True).start()
    try:
        found, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise NoAnswer(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return found


async def _awaited(found: Awaitable[Any]) -> Any:
    return await found


def source_note(path: str, key: str) -> dict[str, str]:
    """{"path", "sha256" of the source file of its module}, for a fingerprint. The module is not executed (the packages
    around it are). Raises ConfigError where it is not there."""
    origin = _spec(path, key).origin
    file = Path(origin or "")
    if not origin or not file.is_file():
        raise ConfigError(f"{key}={path}: the module has no source file, whose hash would say whether it has changed")
    return {"path": path, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def source_notes(named: Mapping[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    """{"strategies": {key: `source_note`}} of those settings (key -> value) that name an object of one's own; {} where
    none does, so that the fingerprint of a run without them is what it always was. Raises ConfigError."""
    found = {key: source_note(value, key) for key, value in named.items() if is_path(value)}
    return {"strategies": found} if found else {}


def methods_of(protocol: type) -> list[str]:
    """The public methods and properties that a protocol asks for, in order."""
    return [
        name
        for name, member in vars(protocol).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, property))
    ]


def _spec(path: str, key: str) -> Any:
    """Where Python finds the module of `path`. Raises ConfigError."""
    module = path.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:
        raise ConfigError(f"{key}={path}: the module {module} cannot be imported: {one_line(error)}") from error
    if spec is None:
        raise ConfigError(f"{key}={path}: no module {module}; install its package, or put its folder on PYTHONPATH")
    return spec
