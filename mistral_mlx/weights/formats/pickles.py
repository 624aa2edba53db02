"""The pickle inside a PyTorch file, interpreted here: what it names is never imported, and nothing in it is called.

A pickle is a program for a small stack machine (the module `pickletools` describes every instruction). A file of
weights needs about thirty of them, and four names; any other instruction or name ends the reading before it has an
effect.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any

from mistral_mlx.errors import WeightsError


@dataclass(frozen=True)
class Storage:
    """A stretch of numbers of one type: its key in the archive, torch's word for the type, and how many."""

    key: str
    kind: str
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor as a window on a storage; offset and strides count elements. None of it has been checked."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """Something that a pickle imports."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


_DICT = _Name("collections", "OrderedDict")
_TENSOR = _Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = _Name("torch._utils", "_rebuild_parameter")
_CALLABLE = (_DICT, _TENSOR, _PARAMETER)
_OTHER_KIND = "Save it anew with plain tensors in BF16, F16 or F32, or use the model's safetensors."
_DO_NOT_TRUST = "Weights never need that: do not trust the file. Fetch the model from its publisher, as safetensors."


def read_pickle(data: bytes, where: str) -> Any:
    """What the pickle stands for: dictionaries, lists, tuples, plain values and Views.

    Raises:
        WeightsError: it names, or does, what a file of weights does not need.
        Exception: whatever a damaged one leads to.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each open mark
    memo: dict[int, Any] = {}
    for code, argument, _ in pickletools.genops(data):
        value: Any = argument
        match code.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code.name == "NEWTRUE")
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(value)
            case "EMPTY_TUPLE":
                stack.append(())
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(code.name[-1]) :] = [tuple(stack[-int(code.name[-1]) :])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items, stack = stack, outer.pop()
                stack[-1].extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                stack[-1][_key(key)] = item
            case "SETITEMS":
                items, stack = stack, outer.pop()
                stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "GLOBAL":
                stack.append(_allowed(*value.split(" ", 1), where=where))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(module, name, where=where))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_call(function, arguments))
            case "BUILD":
                stack.pop()  # an attribute of the dictionary, such as the versions of modules
            case _:
                raise WeightsError(f"{where} has the pickle instruction {code.name}.", _DO_NOT_TRUST)
    raise ValueError("it ends too early")


def _key(value: Any) -> str | int:
    """A dictionary's key: nothing whose hash could run deep, nor numbers chosen to share one."""
    if not (isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**60)):
        raise ValueError("a key that is neither text nor a number")
    return value


def _allowed(module: Any, name: Any, *, where: str) -> _Name:
    if not (isinstance(module, str) and isinstance(name, str)):  # a small tuple can be endless when written out
        raise ValueError("a name that is no text")
    found = _Name(module, name)
    if found in _CALLABLE or (module == "torch" and name.endswith("Storage")):
        return found
    if module == "torch._utils":
        raise WeightsError(f"{where} has tensors that {str(found)[:100]} makes, which are not read here.", _OTHER_KIND)
    raise WeightsError(f"{where} would run {str(found)[:100]}; nothing was run.", _DO_NOT_TRUST)


def _call(function: Any, arguments: Any) -> Any:
    """The meaning of the three functions that may be called."""
    if function == _DICT and arguments == ():  # what it holds is set later; from a list it could be copied endlessly
        return {}
    if function == _PARAMETER:
        return arguments[0]
    if function == _TENSOR:
        storage, offset, shape, strides = arguments[:4]
        return View(storage, offset, shape, strides)
    raise ValueError("a call of something that is no function")


def _storage(value: Any) -> Storage:
    """From torch's persistent id: ("storage", type, key, location, elements)."""
    word, kind, key, _, elements = value
    if word != "storage" or not isinstance(kind, _Name) or not isinstance(key, str):
        raise ValueError("an id that is no storage's")
    return Storage(key, kind.name.removesuffix("Storage"), elements)
