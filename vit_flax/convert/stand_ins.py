"""Inert placeholders for plain data in pickles of training scripts: argparse's Namespace, paths, NumPy's scalars.

A checkpoint's tensors are what is read; the objects beside them are named as what they were and hold nothing. None of
the names here is ever imported: torch's unpickler is given these classes in their place.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
_SCALARS = (
    "bool_", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32",
    "float64", "complex64", "complex128", "str_", "bytes_",
)  # fmt: skip
_BUILTINS = ("list", "dict", "int", "float", "bool", "str", "bytes", "tuple", "object", "slice", "range", "frozenset",
             "bytearray", "Ellipsis")  # fmt: skip
_LIGHTNING = ("pytorch_lightning", "lightning.pytorch", "lightning")
_OMEGACONF_NODES = ("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode", "IntegerNode", "PathNode",
                    "StringNode")  # fmt: skip

_OBJECTS = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("", "Posix", "Windows")),
    *(f"{module}.Pure{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("", "Posix", "Windows")),
    *(f"{module}.{name}" for module in _NUMPY for name in ("scalar", "_reconstruct", "ndarray", "dtype")),
    *(f"numpy.{name}" for name in _SCALARS),
    *(f"builtins.{name}" for name in _BUILTINS),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "uuid.UUID",
    "torch.torch_version.TorchVersion",
    "decimal.Decimal",
    "fractions.Fraction",
    *(f"typing.{name}" for name in ("Any", "Dict", "List", "Optional", "Tuple", "Union")),
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.base.{name}" for name in ("Metadata", "ContainerMetadata")),
    *(f"omegaconf.nodes.{name}" for name in _OMEGACONF_NODES),
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.config.config.Config",
    "mmcv.utils.config.Config",
    # keys of old versions of Lightning
    *(f"{library}.callbacks.{kind}" for library in _LIGHTNING
      for kind in ("model_checkpoint.ModelCheckpoint", "early_stopping.EarlyStopping")),
}  # fmt: skip
_MAPPINGS = {
    "collections.defaultdict",
    "yacs.config.CfgNode",
    "fvcore.common.config.CfgNode",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "munch.Munch",
    "mmengine.config.config.ConfigDict",
    "mmcv.utils.config.ConfigDict",
    *(f"{library}.{module}.AttributeDict" for library in _LIGHTNING
      for module in ("utilities.parsing", "fabric.utilities.data")),
    "lightning_fabric.utilities.data.AttributeDict",
}  # fmt: skip
_SEQUENCES = {"collections.deque"}
STAND_INS = frozenset(_OBJECTS | _MAPPINGS | _SEQUENCES)


class Inert:
    """Takes whatever it is made of and keeps nothing."""

    __slots__ = ()

    def __new__(cls, *_args: object) -> object:
        """Makes one, whatever it is given."""
        return object.__new__(cls)

    def __setstate__(self, _state: object) -> None:
        """Forgets the state."""


class _InertMapping:
    def __new__(cls, *_args: Any) -> Any:
        return OrderedDict()  # the tensors in it are read; of mappings torch fills its own three kinds alone


class _InertSequence:
    def __new__(cls, *_args: Any) -> Any:
        return []


@functools.cache
def _stand_in(name: str) -> type:
    base = _InertMapping if name in _MAPPINGS else _InertSequence if name in _SEQUENCES else Inert
    called = name.rsplit(".", 1)[-1]
    return type({"_reconstruct": "ndarray", "scalar": "number"}.get(called, called), (base,), {"__slots__": ()})


def stand_ins(names: Iterable[str]) -> list[tuple[type, str]]:
    """Returns those that a pickle with these names ('module.name') needs, as torch's safe_globals takes them."""
    return [(_stand_in(name), name) for name in sorted(set(names) & STAND_INS)]
