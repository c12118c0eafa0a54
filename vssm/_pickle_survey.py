"""A look through a pickle before it is read: what it would call, and how large its tensors claim to be.

The opcodes are followed one by one with symbols in place of objects, so nothing is imported, made or called.
"""

import math
import pickletools
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["DEEPEST", "LOG_HISTORY", "MODULE_CLASSES", "Refusal", "Survey", "shown"]

# Containers in one another.
DEEPEST = 64

# mmengine's record of a logged number, which names its own methods by getattr.
LOG_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
_STATISTICS = ("min", "max", "current", "mean")
# Where files hold whole modules in place of state dicts. One of their classes keeps a method of another by getattr.
MODULE_CLASSES = ("ultralytics.", "torch.nn.", "timm.")
# PyTorch's own limit.
_MOST_SIZES = 64
_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "ComplexDouble": 16,
    "ComplexFloat": 8, "QInt32": 4,
}  # fmt: skip
# Bytes of the largest kind of numbers.
_LARGEST = 16
_TENSORS = (
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_qtensor",
)
# What PyTorch's restricted reader may call without a further look.
_HARMLESS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_sparse_tensor",
    "torch.serialization._get_layout",
    "torch.device",
    "builtins.complex",
)
# What makes a container of the values of another.
_CONTAINERS = ("torch.Size", "collections.OrderedDict", "collections.Counter", "builtins.set")
# What makes a tensor by a copy.
_COPIES = (
    "torch._utils._rebuild_device_tensor_from_numpy",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor",
)
# Standard modules whose classes hold values and nothing else; objects of other standard modules are refused.
_VALUES = (
    "argparse", "collections", "copyreg", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "ipaddress", "pathlib", "random", "string", "time", "types", "uuid", "zoneinfo",
)  # fmt: skip
_LOWER_CASE_CLASSES = (
    "builtins.bytes", "builtins.frozenset", "builtins.list", "builtins.dict", "builtins.tuple", "builtins.object",
    "builtins.slice", "builtins.range", "builtins.int", "builtins.float", "builtins.str", "builtins.bool",
    "collections.defaultdict", "collections.deque", "copyreg._reconstructor", "datetime.date", "datetime.datetime",
    "datetime.time", "datetime.timedelta", "datetime.timezone", "functools.partial",
)  # fmt: skip


class Refusal(Exception):
    """The file asks for something that is not done; the text is the end of a sentence about the file."""


class _Named:
    """A class or a function that the pickle mentions."""

    def __init__(self, name: str):
        self.name = name


class _Made:
    """The result that a call, or the creation of an object, would give.

    Attributes:
        of: The name of what was called.
        count: How many values it has: items, letters, bytes, or a tensor's values.
    """

    def __init__(self, of: str, count: int):
        self.of = of
        self.count = count


class _Storage:
    def __init__(self, count: int, size: int):
        self.count = count
        self.size = size


class _Tuple(tuple):
    """A tuple that knows how deep it is, and how many values it has with those of its tuples.

    Python hashes a tuple by recursion in C, and a tuple that occurs twice in it twice.
    """

    def __init__(self, items: Sequence[Any]):
        inner = [item for item in items if isinstance(item, _Tuple)]
        self.depth = 1 + max((item.depth for item in inner), default=0)
        self.count = 1 + len(items) + sum(item.count for item in inner)
        if self.depth > DEEPEST:
            raise Refusal(f"is nested deeper than {DEEPEST} containers")


class _Plain:
    """A list, dict or set, of whose content only the amount is of interest."""

    count = 0


class Survey:
    """The contents of a pickle.

    Args:
        data: The pickle.
        records: Size in bytes of each storage in the archive, by its key.
        unknown: Names that PyTorch's restricted reader does not know.

    Attributes:
        inert: Name of each class without which the file can be understood -> how its objects are filled: "object",
            "dict" or "list".
        top: Name of the class of the outermost object, or None when that is a plain container or value.

    Raises:
        Refusal: It would call a function, or a tensor in it claims more than the file holds.
        ValueError: It is damaged. IndexError, KeyError and TypeError mean the same.
    """

    def __init__(self, data: bytes, records: Mapping[str, int], unknown: set[str]):
        self.inert: dict[str, str] = {}
        self._records = records
        self._unknown = unknown
        self._work = self._most_work = 4 * len(data) + (1 << 20)
        self._limit = max(sum(records.values()), 1 << 20)
        # Layers that share weights name one storage once for each layer.
        self._bytes = self._most_bytes = max(32 * sum(records.values()), 1 << 25)
        result = self._follow(data)
        self.top = result.of if isinstance(result, _Made) and result.of in self.inert else None
        if self.top and self.inert[self.top] == "dict":
            self.top = None

    def _follow(self, data: bytes) -> Any:
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        for opcode, value, _ in pickletools.genops(data):
            name = opcode.name
            if name in ("BINUNICODE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1", "SHORT_BINSTRING"):
                stack.append(value)
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[value] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[value])
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "TUPLE":
                start = marks.pop()
                stack[start:] = [_Tuple(stack[start:])]
            elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
                count = int(name[-1])
                if len(stack) < count:
                    raise IndexError
                stack[-count:] = [_Tuple(stack[-count:])]
            elif name in ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
                stack.append(_Plain())
            elif name == "EMPTY_TUPLE":
                stack.append(_Tuple(()))
            elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            elif name in ("APPEND", "SETITEM"):
                count = 1 if name == "APPEND" else 2
                if len(stack) <= count:
                    raise IndexError
                items = stack[-count:]
                del stack[-count:]
                self._filled(stack[-1], "list" if name == "APPEND" else "dict", items)
            elif name in ("APPENDS", "SETITEMS"):
                start = marks.pop()
                items = stack[start:]
                del stack[start:]
                self._filled(stack[-1], "list" if name == "APPENDS" else "dict", items)
            elif name == "GLOBAL":
                stack.append(_Named(self._name(value)))
            elif name == "BINPERSID":
                stack.append(self._storage(stack.pop()))
            elif name in ("REDUCE", "NEWOBJ"):
                arguments = stack.pop()
                stack[-1] = self._made(stack[-1], arguments, name == "NEWOBJ")
            elif name == "BUILD":
                self._check_state(stack.pop(), stack[-1])
            elif name == "STOP":
                return stack.pop()
            elif name == "PROTO":
                if value > 3:
                    raise Refusal(
                        f"was saved with pickle protocol {value}; save it again without the option pickle_protocol"
                    )
            else:
                raise ValueError(f"unknown instruction {name}")
        raise ValueError("no end")

    def _name(self, value: str) -> str:
        module, _, name = value.partition(" ")
        if not module or not name or " " in name:
            raise ValueError("a name that is none")
        # As PyTorch reads what Python 2 wrote.
        if (module, name) in NAME_MAPPING:
            module, name = NAME_MAPPING[module, name]
        module = IMPORT_MAPPING.get(module, module)
        full = f"{module}.{name}"
        if module in ("os", "posix", "nt", "sys"):
            raise Refusal(_code(full))
        if full in self._unknown:
            self.inert.setdefault(full, "object")
        return full

    def _filled(self, target: Any, kind: str, items: Sequence[Any]) -> None:
        if isinstance(target, _Plain | _Made):
            target.count += len(items) + sum(item.count for item in items if isinstance(item, _Tuple))
        if kind == "dict":
            # Their keys are hashed.
            self._spend(sum(key.count for key in items[::2] if isinstance(key, _Tuple)))
        if isinstance(target, _Made) and target.of in self.inert and self.inert[target.of] != "dict":
            self.inert[target.of] = kind

    def _spend(self, work: int) -> None:
        """Count what reading hashes or copies: named again and again, a small object is much work."""
        self._work -= work
        if self._work < 0:
            raise Refusal(
                f"is refused: its values unfold to more than the {self._most_work} that a file of its size may have"
            )

    def _storage(self, key: Any) -> _Storage:
        tag, kind, record, place, count = key
        texts = isinstance(record, str) and isinstance(place, str)
        if tag != "storage" or not isinstance(kind, _Named) or not texts or type(count) is not int:
            raise ValueError("a storage that is none")
        size = _BYTES.get(kind.name.rpartition(".")[2].removesuffix("Storage"), 1)
        if count < 0 or count * size > self._records[record]:
            raise Refusal(f"is damaged: it says that a tensor has {shown(str(count))} values, and holds fewer")
        return _Storage(count, size)

    def _made(self, function: Any, arguments: Any, new: bool) -> _Made:
        if not isinstance(function, _Named) or not isinstance(arguments, tuple):
            raise Refusal("holds code: it calls what it has made itself")
        return _Made(function.name, self._check(function.name, arguments, new))

    def _check(self, name: str, arguments: tuple, new: bool) -> int:
        """Refuse what must not be called, or not with these arguments, and count the values of its result."""
        count = 0
        if new and name in self.inert and not name.startswith(("numpy.", "builtins.", LOG_HISTORY)):
            return count
        numpy = re.fullmatch(r"numpy\._?core\.multiarray\.(_reconstruct|scalar)", name)
        if name in _TENSORS and not new:
            # The third kind has numbers of a type that it names itself.
            bits = re.search(r"\d+", arguments[6].name) if name.endswith("_v3") else None
            width = max(int(bits[0]) // 8, 1) if bits else 1
            count = self._check_tensor(*arguments[:4], width if name.endswith("_v3") else None)
        elif name in _COPIES and not new:
            data = arguments[0]
            if not isinstance(data, _Made) or not (data.of in _TENSORS or data.of.endswith("._reconstruct")):
                raise Refusal("makes a tensor of what is none")
            count = data.count
            self._take(count * _LARGEST)
        elif name in _CONTAINERS and (not new or name == "collections.OrderedDict"):
            # Others may give more values than the file has.
            if not all(isinstance(argument, _Plain | _Tuple) for argument in arguments):
                raise Refusal(_code(name))
            count = _amount(arguments)
            self._spend(count)
        elif name == "torch._utils._rebuild_meta_tensor_no_storage" and not new:
            _check_shape(0, *arguments[1:3])
        elif name == "torch._tensor._rebuild_from_type_v2" and not new:
            maker, kind, inner = arguments[:3]
            if kind.name not in ("torch.Tensor", "torch.nn.parameter.Parameter"):
                raise Refusal(f"holds a tensor of a class of its own, {shown(kind.name)}; save plain tensors")
            count = self._check(maker.name, inner, False)
        elif numpy:
            if numpy[1] == "_reconstruct" and (arguments[0].name, arguments[1]) != ("numpy.ndarray", (0,)):
                raise Refusal("holds an array that is none of NumPy's")
            # Without a value it is as large as its type says.
            if numpy[1] == "scalar" and not (len(arguments) == 2 and isinstance(arguments[1], _Made | str)):
                raise Refusal("holds a number of NumPy without a value")
            self._spend(_amount(arguments[1:]))
        elif name == "numpy.dtype":
            if not isinstance(arguments[0], str) or not re.fullmatch(r"[<>|=]?[biufcSU?]\d{0,4}", arguments[0]):
                raise Refusal("holds an array of objects")
        elif name == "_codecs.encode":
            _check_text(name, arguments)
            count = _amount(arguments[:1])
            self._spend(count)
        elif name == "builtins.bytearray":
            # Of a number it would have that length.
            source = arguments[0] if arguments else ""
            if not (isinstance(source, _Made) and source.of == "_codecs.encode" and len(arguments) == 1):
                _check_text(name, arguments or ("", "latin-1"))
            count = _amount(arguments[:1])
            self._spend(count)
        elif name == "builtins.getattr":
            owner, attribute = arguments
            of = getattr(owner, "name", "")
            history = of == LOG_HISTORY and attribute in _STATISTICS
            # Of a stand-in, and answered by one.
            function = of in self.inert and of.startswith(MODULE_CLASSES[0]) and attribute == "apply"
            if new or not (history or function):
                raise Refusal(_code(name))
        elif (name in _HARMLESS and not new) or (name == LOG_HISTORY and new):
            pass
        elif name not in self.inert or not _is_class(name):
            raise Refusal(_code(name))
        return count

    def _check_state(self, state: Any, of: Any) -> None:
        if not isinstance(of, _Made):
            raise ValueError("a state without an object")
        if of.of in (*_TENSORS, "torch._tensor._rebuild_from_type_v2") or of.of.startswith("torch.nn.parameter."):
            raise Refusal("changes a tensor after it was made")
        # Fields and shapes of a NumPy type are no part of numbers and texts.
        if of.of == "numpy.dtype" and not (isinstance(state, tuple) and all(x is None for x in state[2:5])):
            raise Refusal("holds an array of records")
        amount = _amount(state if isinstance(state, tuple) else (state,))
        self._spend(amount)
        of.count += amount

    def _check_tensor(self, storage: Any, offset: Any, size: Any, stride: Any, width: int | None) -> int:
        if not isinstance(storage, _Storage):
            raise Refusal("holds a tensor without values of its own")
        _check_shape(offset, size, stride)
        values = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if values else offset - 1
        width = width or storage.size
        if last >= storage.count * storage.size // width or values > self._limit:
            raise Refusal(f"is damaged: it says that a tensor has {shown(str(values))} values, and holds fewer")
        self._take(values * width)
        return values

    def _take(self, amount: int) -> None:
        """Count the bytes of a tensor, which are in memory once it is copied."""
        self._bytes -= amount
        if self._bytes < 0:
            raise Refusal(
                f"is refused: its tensors together claim more than the {self._most_bytes} bytes that they may in a "
                "file of its size"
            )


def _amount(values: Sequence[Any]) -> int:
    """How many values there are in values, one level down but for tuples."""
    counted = (_Made, _Plain, _Tuple)
    return sum(len(x) if isinstance(x, str) else x.count if isinstance(x, counted) else 1 for x in values)


def _check_text(name: str, arguments: tuple) -> None:
    """Refuse to make bytes of anything but a text, as pickles do."""
    if not isinstance(arguments[0], str) or arguments[1:] not in (("latin1",), ("latin-1",)):
        raise Refusal(_code(name))


def _check_shape(offset: Any, size: Any, stride: Any) -> None:
    # Before any arithmetic, which takes long with many large numbers.
    shapes = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= _MOST_SIZES
    if not shapes or not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *size, *stride)):
        raise Refusal(
            f"is damaged: a tensor's shape has to be at most {_MOST_SIZES} sizes and as many strides, each a whole "
            "number from 0 to 2**63 - 1"
        )


def _is_class(name: str) -> bool:
    """Whether a name is a class's, as far as it tells, and of one that holds values."""
    module, _, last = name.rpartition(".")
    if name in _LOWER_CASE_CLASSES or module.startswith("numpy.random"):
        return True
    package = module.partition(".")[0]
    return last[:1].isupper() and (package not in sys.stdlib_module_names or package in _VALUES)


def _code(name: str) -> str:
    return f"holds code ({shown(name)}), so it is refused; save a state dict, which has only tensors"


def shown(text: Any, limit: int = 80) -> str:
    """A text of unknown origin for a message: shortened, and without control characters."""
    if not isinstance(text, str):
        return f"<{type(text).__name__}>"
    start = text[:limit]
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in start)
    return safe + (f"... ({len(text)} characters)" if len(text) > limit else "")
