"""PyTorch's files: what is read, what is refused, and that nothing a file holds is ever run."""

import argparse
import collections
import datetime
import functools
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import types
import zipfile
from pathlib import Path, PureWindowsPath

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import _utils

from parity_tests.guarded import read_guarded
from vit_flax.convert import ConversionError, from_mapping, read_checkpoint, write_checkpoint
from vit_flax.convert.safetensors_file import write_safetensors


def tensors() -> dict[str, torch.Tensor]:
    return {
        "a": torch.randn(3, 4),
        "b.half": torch.randn(5).half(),
        "b.bfloat16": torch.randn(2, 2).bfloat16(),
        "c.double": torch.randn(2, dtype=torch.float64),
        "count": torch.tensor(7),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "transposed": torch.randn(3, 4).T,
        "every second": torch.randn(8)[1::2],
        "complex": torch.randn(2, dtype=torch.complex64),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }


def assert_same(checkpoint, expected) -> None:
    assert dict(checkpoint.shapes) == {name: tuple(tensor.shape) for name, tensor in expected.items()}
    for name, tensor in expected.items():
        array, tensor = checkpoint.read(name), tensor.detach()
        if tensor.dtype == torch.bfloat16:
            assert array.dtype == ml_dtypes.bfloat16
            array, tensor = array.view(np.int16), tensor.contiguous().view(torch.int16)
        assert array.dtype == tensor.numpy().dtype, name
        np.testing.assert_array_equal(array, tensor.numpy())


class TestRead:
    @pytest.mark.parametrize("zipped", [True, False])
    def test_every_kind_of_tensor(self, tmp_path, zipped):
        expected = tensors()
        torch.save(expected, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        checkpoint = read_checkpoint(tmp_path / "a.pth")
        assert_same(checkpoint, expected)
        assert_same(checkpoint, expected)  # a second time: pages let go of are read again

    def test_in_memory(self):
        expected = tensors()
        assert_same(from_mapping(expected), expected)
        assert_same(
            from_mapping({"conjugate": expected["complex"].conj()}),
            {"conjugate": expected["complex"].conj().resolve_conj()},
        )

    def test_tensors_that_share_a_storage(self, tmp_path):
        flat = torch.randn(100_000)
        expected = {"a": flat[:50_000], "b": flat[50_000:].reshape(100, 500), "all": flat}
        torch.save(expected, tmp_path / "a.pth")
        checkpoint = read_checkpoint(tmp_path / "a.pth")
        first = checkpoint.read("b")
        assert_same(checkpoint, expected)
        np.testing.assert_array_equal(first, expected["b"].numpy())

    def test_a_training_checkpoint_keeps_its_nesting(self, tmp_path):
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": collections.OrderedDict(last_epoch=3, milestones=collections.Counter([1, 2])),
            "epoch": 3,
            "best": 0.5,
            "names": ["a", "b"],
        }
        torch.save(state, tmp_path / "a.pth")
        checkpoint = read_checkpoint(tmp_path / "a.pth")
        np.testing.assert_array_equal(checkpoint.read("model/weight"), model.weight.detach().numpy())
        assert "optimizer/state/0/exp_avg" in checkpoint.shapes
        assert checkpoint.skipped["epoch"] == "int"
        assert checkpoint.skipped["names"] == "list"
        assert checkpoint.skipped["optimizer/param_groups/0/lr"] == "float"

    @pytest.mark.parametrize("zipped", [True, False])
    def test_arguments_of_training_scripts_are_left_out_by_name(self, tmp_path, zipped):
        best = collections.defaultdict(list, {"scores": [1.0], "mean": torch.ones(2)})
        value = {
            "model": {"weight": torch.ones(2, 3)},
            "args": argparse.Namespace(lr=np.float64(0.1), output_dir=Path("runs/x"), seed=np.int64(3), best=best),
            "best": best,
            "score": np.float32(0.5),
            "path": PureWindowsPath("c:/x"),
            "random": (np.random.default_rng(0).random(700), np.dtype("float32"), np.float32, int, torch.float32),
            "when": datetime.datetime(2026, 1, 1),
            "space": types.SimpleNamespace(a=1),
            "torch": torch.__version__,  # of a type of torch's own
            "buffer": bytearray(b"x"),
            "rest": ...,
            "last": collections.deque([1, 2], 5),
            "bytes": b"abc",
            "settings": {None: 1, (0.9, 0.999): 2, 1.5: 3},
        }
        torch.save(value, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        before = set(torch.serialization.get_safe_globals())
        checkpoint = read_checkpoint(tmp_path / "a.pth")
        assert checkpoint.shapes == {"model/weight": (2, 3), "best/mean": (2,)}
        np.testing.assert_array_equal(checkpoint.read("model/weight"), np.ones((2, 3)))
        kinds = {"args": "Namespace", "score": "number", "path": "PureWindowsPath", "when": "datetime"}
        assert kinds.items() <= checkpoint.skipped.items()
        assert checkpoint.skipped["settings/<NoneType 0>"] == "int"
        assert set(torch.serialization.get_safe_globals()) == before

    def test_settings_of_other_libraries_need_none_of_them(self, tmp_path, monkeypatch):
        names = {"omegaconf.dictconfig.DictConfig": object, "yacs.config.CfgNode": dict, "easydict.EasyDict": dict,
                 "pytorch_lightning.utilities.parsing.AttributeDict": dict}  # fmt: skip
        kinds = []
        for name, base in names.items():
            module, _, kind = name.rpartition(".")
            parents = module.split(".")[:-1]
            for i in range(len(parents)):
                monkeypatch.setitem(sys.modules, ".".join(parents[: i + 1]), types.ModuleType(parents[i]))
            fake = types.ModuleType(module)
            setattr(fake, kind, type(kind, (base,), {"__module__": module}))
            monkeypatch.setitem(sys.modules, module, fake)
            kinds.append(getattr(fake, kind)())
        for kind in kinds[1:]:
            kind["lr"] = 0.1
        kinds[0].content = {"lr": 0.1}
        torch.save({"model": {"weight": torch.ones(2)}, "settings": kinds}, tmp_path / "a.ckpt")
        monkeypatch.undo()
        checkpoint = read_checkpoint(tmp_path)
        assert checkpoint.shapes == {"model/weight": (2,)}

    def test_sharded_bin(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model-1.bin")
        torch.save({"b": torch.zeros(3)}, tmp_path / "pytorch_model-2.bin")
        weight_map = '{"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}'
        (tmp_path / "pytorch_model.bin.index.json").write_text(weight_map)
        assert_same(read_checkpoint(tmp_path), {"a": torch.ones(2), "b": torch.zeros(3)})

    def test_what_we_write_torch_reads(self, tmp_path):
        arrays = {"a": np.random.default_rng(0).normal(size=(3, 4)).T, "b": np.ones(3, ml_dtypes.bfloat16)}
        write_checkpoint(tmp_path / "a.pth", arrays, {})
        loaded = torch.load(tmp_path / "a.pth", weights_only=True)
        np.testing.assert_array_equal(loaded["a"].numpy(), arrays["a"])
        assert loaded["b"].dtype == torch.bfloat16

    def test_pages_of_the_file_do_not_stay_in_memory(self, tmp_path):
        torch.save({str(i): torch.ones(1 << 20) for i in range(32)}, tmp_path / "a.pth")
        program = (
            "import sys, torch\n"
            "from vit_flax.convert import read_checkpoint\n"
            "resident = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096\n"
            "for path in sys.argv[1:]:\n"
            "    checkpoint = read_checkpoint(path)\n"
            "    before, most = resident(), 0\n"
            "    for name in checkpoint.shapes:\n"
            "        assert checkpoint.read(name).sum() == 1 << 20\n"
            "        most = max(most, resident())\n"
            "    print(most - before)"
        )
        paths = [tmp_path / "a.pth", tmp_path / "a.safetensors", tmp_path / "a.npz"]
        for path in paths[1:]:
            source = read_checkpoint(tmp_path / "a.pth")
            write_checkpoint(path, {name: source.read(name) for name in source.shapes}, {})
        done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
        for path, grown in zip(paths, done.stdout.split(), strict=True):
            assert int(grown) < 24 << 20, path.suffix  # of 128 MB; a tensor has 4


def refused(value, path: Path) -> str:
    torch.save(value, path)
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning", "ignore:.*:FutureWarning")
class TestRefused:
    def test_tensors_without_plain_storage_by_name(self, tmp_path):
        path = tmp_path / "a.pth"
        sparse = torch.eye(3).to_sparse()
        assert "emb.weight is sparse" in refused({"emb.weight": sparse}, path)
        assert "sparse" in refused({"emb.weight": torch.eye(3).to_sparse_csr()}, path)
        assert "q is quantised" in refused({"q": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, path)
        assert "m is meta" in refused({"m": torch.empty(3, device="meta")}, path)
        assert "nested" in refused({"n": torch.nested.nested_tensor([torch.ones(2)])}, path)
        assert "_rebuild_tensor_v3" in refused({"u": torch.ones(2).to(torch.uint16)}, path)
        assert "wide is a view larger" in refused({"wide": torch.ones(1).expand(10, 1 << 30)}, path)

    def test_the_same_in_memory(self):
        for value, fault in (
            (torch.eye(3).to_sparse(), "sparse_coo"),
            (torch.eye(3).to_sparse_csr(), "sparse_csr"),
            (torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "quantised"),
            (torch.empty(3, device="meta"), "meta"),
            (torch.nested.nested_tensor([torch.ones(2)]), "nested"),
            (torch.zeros(2, dtype=torch.float8_e4m3fn), "float8"),
            (np.array(["a"]), "<U1"),
            (np.array([{}]), "object"),
        ):
            with pytest.raises(ConversionError, match=rf"bad \(.*{fault}"):
                from_mapping({"good": torch.ones(2), "bad": value})

    def test_python_objects_by_name_and_with_the_way_out(self, tmp_path):
        message = refused({"model": tensors(), "args": threading.Event}, tmp_path / "a.pth")
        assert "threading.Event" in message
        assert "torch.save(model.state_dict()" in message
        assert "functools.partial" in refused({"loss": functools.partial(int, "3")}, tmp_path / "a.pth")
        assert "getattr" in refused({"activation": getattr}, tmp_path / "a.pth")

    def test_what_is_no_mapping_of_tensors(self, tmp_path):
        assert "holds one tensor" in refused(torch.ones(2), tmp_path / "a.pth")
        assert "list" in refused([torch.ones(2)], tmp_path / "a.pth")
        assert "epoch (int)" in refused({"epoch": 3}, tmp_path / "a.pth")
        with pytest.raises(ConversionError, match=r"got Linear; pass its state_dict\(\)"):
            from_mapping(torch.nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]

    def test_mappings_without_end(self, tmp_path):
        endless: dict = {"a": torch.ones(2)}
        endless["again"] = endless
        assert "nested more than" in refused(endless, tmp_path / "a.pth")
        many: dict = {"a": torch.ones(2)}
        for _ in range(12):
            many = {str(i): many for i in range(50)}
        assert "more than" in refused(many, tmp_path / "a.pth")
        long: list = [0] * 400_000
        assert "more than" in refused({"a": torch.ones(1), "b": [long, []] * 10}, tmp_path / "a.pth")

    def test_a_name_that_comes_twice(self):
        with pytest.raises(ConversionError, match=r"a/b \(twice\)"):
            from_mapping({"a": {"b": np.ones(2)}, "a/b": np.ones(2)})

    def test_a_program(self, tmp_path):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
        with pytest.raises(ConversionError, match="TorchScript program"):
            read_checkpoint(tmp_path / "a.pt")

    def test_a_later_protocol_says_what_to_do(self, tmp_path):
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", pickle_protocol=4)
        with pytest.raises(ConversionError, match=r"protocol"):
            read_checkpoint(tmp_path / "a.pth")

    def test_torch_that_reads_pickles_unsafely(self, tmp_path, monkeypatch):
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
        monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
        with pytest.raises(ConversionError, match=r"torch 2.9.1\+cpu reads pickles unsafely; needs 2.10"):
            read_checkpoint(tmp_path / "a.pth")

    def test_only_weights_only_is_ever_asked_for(self, tmp_path, monkeypatch):
        asked = []
        load = torch.load
        monkeypatch.setattr(torch, "load", lambda *args, **kwargs: asked.append(kwargs) or load(*args, **kwargs))
        for zipped in (True, False):
            torch.save({"a": torch.ones(2)}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
            read_checkpoint(tmp_path / "a.pth")
        assert [kwargs["weights_only"] for kwargs in asked] == [True, True]


class Call:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def hostile_pickles(victim: Path) -> dict[str, bytes]:
    """Pickles that would create `victim`, were they run."""
    command = f"touch {victim}".encode()
    call = Call(os.system, command.decode())
    found = {f"reduce{protocol}": pickle.dumps({"a": call}, protocol) for protocol in range(6)}
    text = b"X" + struct.pack("<I", len(command)) + command
    found |= {
        "global": b"\x80\x02cposix\nsystem\n" + text + b"\x85R.",
        "mapped global": b"\x80\x02c__builtin__\nexec\n" + text + b"\x85R.",
        "inst": b"\x80\x02(" + text + b"iposix\nsystem\n.",
        "obj": b"\x80\x02(cposix\nsystem\n" + text + b"o.",
        "newobj": b"\x80\x02ccollections\nOrderedDict\n)\x81cposix\nsystem\n" + text + b"\x85R.",
        "stack_global": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"\x85R.",
        # the names come from the memo, in another order, behind harmless ones
        "memo": b"\x80\x04\x8c\x06system\x940\x8c\x05posix\x940\x8c\x05torchh\x01h\x00\x93" + text + b"\x85R.",
        "memo put": b"\x80\x04\x8c\x06systemq\x070\x8c\x05posixq\x060h\x06h\x07\x93" + text + b"\x85R.",
        "dup": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text + b"2\x8610\x85R.",
        "ext": b"\x80\x02\x82\x01" + text + b"\x85R.",
        "torch.load": b"\x80\x02ctorch\nload\n" + text + b"\x85R.",
        "torch.hub": b"\x80\x02ctorch.hub\nload\n" + text + b"\x85R.",
        "attribute": b"\x80\x04\x8c\x05torch\x8c\x0a_utils.sys\x93.",
        "build": b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__cposix\nsystem\nsb.",
        "nested pickle": b"\x80\x02c_pickle\nloads\nC\x01." + b"\x85R.",
        "after stop": pickle.dumps({}, 2) + pickle.dumps(call, 2),
        "codecs": b"\x80\x02c_codecs\nencode\n" + text + b"\x85R.",
        "long memo": b"\x80\x02}r\xff\xff\xff\xff.",
        "long text": b"\x80\x02X\xff\xff\xff\xff.",
        "long text 8": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
        "long long": b"\x80\x02\x8b\xff\xff\xff\x7f.",
        "deep": b"\x80\x02" + b"(" * 400_000 + b"t" * 400_000 + b".",
        "wide": b"\x80\x02" + b"]" * 3_000_000 + b".",
        "cut": pickle.dumps({"a": [1, 2, 3]}, 2)[:-3],
        "storage": b"\x80\x02ctorch\nFloatStorage\nJ\xff\xff\xff\x7f\x85R.",
        "tensor": b"\x80\x02ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R.",
        "untyped": b"\x80\x02ctorch.storage\nUntypedStorage\nJ\xff\xff\xff\x7f\x85R.",
        "codecs beside stand-ins": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x08\x00\x00\x00punycode\x86R.",
        "codecs from the memo": (b"\x80\x02c_codecs\nencode\nq\x000h\x00X\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R."),
        "codecs as an argument": (
            b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n(c_codecs\nencode\nctorch\nSize\n"
            b"X\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86}tR."
        ),
        "codecs in a stand-in": b"\x80\x02cargparse\nNamespace\n)\x81}X\x01\x00\x00\x00ac_codecs\nencode\nsb.",
        "bytearray": b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    }
    around = argparse.Namespace(a=[call], b={"c": call}, d=collections.defaultdict(list, {"e": call}))
    found |= {f"stand-ins{protocol}": pickle.dumps({"args": around, "f": Path("x")}, protocol) for protocol in (2, 4)}
    namespace = b"\x80\x02cargparse\nNamespace\n"
    return found | {
        "stand-in called": namespace + b"cposix\nsystem\n" + text + b"\x85R\x85R.",
        "stand-in's factory": b"\x80\x02ccollections\ndefaultdict\ncposix\nsystem\n\x85R.",
        "stand-in's state": namespace + b")\x81}X\x0c\x00\x00\x00__setstate__cbuiltins\neval\nsb.",
        "stand-in's class": namespace + b")\x81}X\x09\x00\x00\x00__class__cposix\nsystem\nsb.",
        "near a stand-in": b"\x80\x02cargparse\n_sys.modules\n.",
        "below a stand-in": b"\x80\x02cpathlib\nos.system\n" + text + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\n" + namespace[2:] + b"X\x08\x00\x00\x00__init__\x86R.",
    }


def torch_zip(pickled: bytes, **entries: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
        for name, data in entries.items():
            archive.writestr(f"archive/{name}", data)
    return out.getvalue()


MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)


def claim(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """The pickle of one float32 tensor with a storage of `numel` numbers, key '0'."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is STORAGE else None

    out = io.BytesIO()
    rebuild = Call(_utils._rebuild_tensor_v2, STORAGE, offset, size, stride, False, collections.OrderedDict())
    Pickler(out, 2).dump({"a": rebuild})
    return out.getvalue()


STORAGE = object()


def hostile_zips() -> dict[str, bytes]:
    data = {"data/0": b"\0" * 64}
    found = {
        "numbers missing": torch_zip(claim(16, (4, 4), (4, 1))),
        "numbers cut": torch_zip(claim(1 << 20, (1 << 20,), (1,)), **data),
        "numbers claimed": torch_zip(claim(1 << 40, (4,), (1,)), **data),
        "stride outside": torch_zip(claim(16, (4, 4), (1 << 40, 1)), **data),
        "stride negative": torch_zip(claim(16, (4, 4), (-4, 1)), **data),
        "stride zero": torch_zip(claim(16, (1 << 40,), (0,)), **data),
        "offset outside": torch_zip(claim(16, (4,), (1,), 1 << 40), **data),
        "offset negative": torch_zip(claim(16, (4,), (1,), -8), **data),
        "no pickle": torch_zip(b""),
        "no stop": torch_zip(b"\x80\x02}"),
        "two pickles": torch_zip(b"\x80\x02}.", **{"sub/data.pkl": b"\x80\x02}."}),
        "big endian": torch_zip(claim(16, (4, 4), (4, 1)), byteorder=b"big", **data),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", claim(16, (4, 4), (4, 1)))
        archive.writestr("archive/data/0", b"\0" * 64)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (300 << 20) + b".")
    return {**found, "packed": packed.getvalue(), "bomb": bomb.getvalue()}


class TestHostile:
    def test_no_pickle_runs_and_none_takes_long(self, tmp_path):
        victim = tmp_path / "victim"
        paths = []
        for name, data in hostile_pickles(victim).items():
            for kind, content in (
                ("plain", data),
                ("zip", torch_zip(data)),
                ("legacy", MAGIC + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2) + data),
            ):
                paths.append(tmp_path / f"{name} {kind}")
                paths[-1].write_bytes(content)
        for name, data in hostile_zips().items():
            paths.append(tmp_path / f"{name} file")
            paths[-1].write_bytes(data)
        before = sorted(tmp_path.iterdir())
        outcomes = read_guarded(paths)
        wrong = {name: result for name, result in outcomes.items() if not result.startswith("refused: ")}
        # torch turns the bytes round, which is right, and the four numbers asked for are there
        assert wrong == {"big endian file": "read", "numbers claimed file": "read"}
        assert sorted(tmp_path.iterdir()) == before
        for name in ("reduce2", "reduce4", "global", "inst", "obj", "stack_global", "memo", "memo put"):
            assert "posix.system" in outcomes[f"{name} zip"], outcomes[f"{name} zip"]

    def test_pickles_are_refused_before_torch_is_loaded(self, tmp_path):
        (tmp_path / "a.pth").write_bytes(torch_zip(pickle.dumps(Call(os.system, "true"), 2)))
        program = (
            "import sys\n"
            "from vit_flax.convert import read_checkpoint\n"
            "try:\n    read_checkpoint(sys.argv[1])\n"
            "except ValueError as error:\n    print(error, 'torch' in sys.modules)"
        )
        command = [sys.executable, "-c", program, str(tmp_path / "a.pth")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "posix.system" in done.stdout
        assert done.stdout.endswith("False\n")


def test_one_safetensors_for_torch_and_for_us(tmp_path):
    from safetensors.torch import load_file, save_file

    expected = {name: tensor.detach().contiguous() for name, tensor in tensors().items()}
    save_file(expected, tmp_path / "a.safetensors")
    checkpoint = read_checkpoint(tmp_path / "a.safetensors")
    assert_same(checkpoint, expected)
    write_safetensors(str(tmp_path / "b.safetensors"), {name: checkpoint.read(name) for name in expected}, {})
    again = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())
