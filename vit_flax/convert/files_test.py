import io
import json
import os
import struct
import subprocess
import sys
import zipfile

import ml_dtypes
import numpy as np
import pytest

from vit_flax.convert import ConversionError, files, read_checkpoint, write_checkpoint
from vit_flax.convert.safetensors_file import read_safetensors


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a.weight": rng.normal(size=(3, 4)).astype(np.float32),
        "half": rng.normal(size=5).astype(np.float16),
        "bfloat16": rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16),
        "double": rng.normal(size=2),
        "count": np.array(7),
        "mask": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
    }


def assert_same(checkpoint, expected) -> None:
    assert dict(checkpoint.shapes) == {name: array.shape for name, array in expected.items()}
    for name, array in expected.items():
        found = checkpoint.read(name)
        assert found.dtype == array.dtype, name
        assert found.tobytes() == array.tobytes(), name


def read_all(path) -> None:
    checkpoint = read_checkpoint(path)
    for name in checkpoint.shapes:
        checkpoint.read(name)


def refused(path) -> str:
    with pytest.raises(ConversionError) as error:
        read_all(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


class TestBackAndForth:
    @pytest.mark.parametrize("name", ["a.safetensors", "a.npz", "folder"])
    def test_bit_for_bit(self, tmp_path, name):
        expected = {name: np.ascontiguousarray(array) for name, array in arrays().items()}
        write_checkpoint(tmp_path / name, expected, {"depth": 2})
        checkpoint = read_checkpoint(tmp_path / name)
        assert_same(checkpoint, expected)
        assert checkpoint.config == (None if name == "a.npz" else {"depth": 2})
        assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) in (
            [name],
            ["config.json", "model.safetensors"],
        )

    def test_npz_of_numpy(self, tmp_path):
        expected = {name: array for name, array in arrays().items() if name != "bfloat16"}
        np.savez_compressed(tmp_path / "a.npz", **expected)  # pyright: ignore[reportArgumentType]
        assert_same(read_checkpoint(tmp_path / "a.npz"), expected)
        np.savez(tmp_path / "a.npz", big=np.arange(3, dtype=">f4"))
        assert_same(read_checkpoint(tmp_path / "a.npz"), {"big": np.arange(3, dtype=np.float32)})

    def test_npz_with_two_raw_bytes_is_bfloat16(self, tmp_path):
        array = arrays()["bfloat16"]
        np.savez_compressed(tmp_path / "a.npz", **{"params/kernel": array.view("V2")})  # pyright: ignore[reportArgumentType]
        assert_same(read_checkpoint(tmp_path / "a.npz"), {"params/kernel": array})

    def test_the_kind_is_told_by_the_content(self, tmp_path):
        write_checkpoint(tmp_path / "a.npz", {"a": np.ones(2)}, {})
        (tmp_path / "a.npz").rename(tmp_path / "a.safetensors")
        assert_same(read_checkpoint(tmp_path / "a.safetensors"), {"a": np.ones(2)})

    def test_a_file_that_is_overwritten_with_itself(self, tmp_path):
        write_checkpoint(tmp_path / "a.safetensors", {"a": np.ones(2)}, {})
        checkpoint = read_checkpoint(tmp_path / "a.safetensors")
        write_checkpoint(tmp_path / "a.safetensors", {"a": checkpoint.read("a"), "b": np.zeros(1)}, {})
        with pytest.raises(ConversionError, match="was changed while it was read"):
            checkpoint.read("a")
        assert_same(read_checkpoint(tmp_path / "a.safetensors"), {"a": np.ones(2), "b": np.zeros(1)})

    def test_config_json_beside_a_file(self, tmp_path):
        write_checkpoint(tmp_path / "a.npz", {"a": np.ones(2)}, {})
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        assert read_checkpoint(tmp_path / "a.npz").config == {"model_type": "vit"}


class TestWriting:
    def test_a_failing_write_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        for name in ("a.safetensors", "a.npz", "folder"):
            write_checkpoint(tmp_path / name, {"a": np.ones(2)}, {"depth": 1})
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

        def fail(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", fail)
        for name in ("a.safetensors", "a.npz", "folder", "new", "new.npz"):
            with pytest.raises(ConversionError, match=r"cannot be written: .*No space left"):
                write_checkpoint(tmp_path / name, {"a": np.zeros(2)}, {"depth": 2})
        monkeypatch.undo()
        monkeypatch.setattr(files.json, "dumps", fail)
        with pytest.raises(ConversionError):
            write_checkpoint(tmp_path / "folder", {"a": np.zeros(2)}, {"depth": 2})
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert not (tmp_path / "new").exists()

    def test_the_umask_decides_who_may_read(self, tmp_path):
        old = os.umask(0o027)
        try:
            for name in ("a.npz", "a.safetensors", "folder"):
                write_checkpoint(tmp_path / name, {"a": np.ones(2)}, {})
        finally:
            os.umask(old)
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
        assert modes == dict.fromkeys(("a.npz", "a.safetensors", "model.safetensors", "config.json"), 0o640)

    def test_equal_contents_are_equal_bytes(self, tmp_path):
        script = (
            "import sys, numpy as np\nfrom vit_flax.convert import write_checkpoint\n"
            "names = sys.argv[2:]\n"
            "arrays = {name: np.arange(6, dtype=name) for name in names}\n"
            "for kind in ('safetensors', 'npz'):\n"
            "    write_checkpoint(f'{sys.argv[1]}.{kind}', dict(sorted(arrays.items())), {'depth': 2, 'b': 1})\n"
            "write_checkpoint(f'{sys.argv[1]}_any.safetensors', arrays, {'depth': 2, 'b': 1})"
        )
        for run, names in (("1", ("f4", "f2", "i8")), ("2", ("i8", "f4", "f2"))):  # dicts of another order too
            subprocess.run([sys.executable, "-c", script, tmp_path / run, *names], check=True)
        for end in (".safetensors", ".npz", "_any.safetensors"):
            assert (tmp_path / f"1{end}").read_bytes() == (tmp_path / f"2{end}").read_bytes()

    def test_the_safetensors_library_reads_what_is_written(self, tmp_path):
        from safetensors import safe_open

        expected = {name: array for name, array in arrays().items() if name != "bfloat16"}  # NumPy's own types
        expected["big endian"] = np.arange(3, dtype=">f4")
        write_checkpoint(tmp_path / "a.safetensors", expected, {"depth": 2})
        with safe_open(tmp_path / "a.safetensors", "np") as file:
            assert file.metadata() == {"format": "pt", "vit_flax_config": '{"depth": 2}'}
            assert sorted(file.keys()) == sorted(expected)
            for name, array in expected.items():
                found = file.get_tensor(name)
                assert found.dtype == array.dtype.newbyteorder("="), name
                np.testing.assert_array_equal(found, array, name)

    def test_unknown_suffixes_and_folders_that_are_not_there(self, tmp_path):
        with pytest.raises(ConversionError, match=r"unknown suffix; use \.safetensors"):
            write_checkpoint(tmp_path / "a.h5", {"a": np.ones(2)}, {})
        with pytest.raises(ConversionError, match="cannot be written"):
            write_checkpoint(tmp_path / "no" / "a.npz", {"a": np.ones(2)}, {})


def safetensors_file(header: bytes | dict, data: bytes = b"") -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(begin: int, end: int, shape=None, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


GOOD = {"a": entry(0, 8), "b": entry(8, 16)}
BROKEN_SAFETENSORS = {
    "cut header": safetensors_file(GOOD)[:40],
    "cut data": safetensors_file(GOOD, b"\0" * 15),
    "more data": safetensors_file(GOOD, b"\0" * 17),
    "huge header": struct.pack("<Q", 1 << 60) + json.dumps(GOOD).encode(),
    "negative header": struct.pack("<q", -1) + json.dumps(GOOD).encode(),
    "long header": safetensors_file(b'{"a":' + b" " * (9 << 20) + b"}"),
    "name twice": safetensors_file(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), b"\0" * 8),
    "key twice": safetensors_file(b'{"a":{"dtype":"F32","dtype":"F64","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
    "overlap": safetensors_file({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
    "same place": safetensors_file({"a": entry(0, 8), "b": entry(0, 8)}, b"\0" * 8),
    "hole": safetensors_file({"a": entry(0, 8), "b": entry(12, 16)}, b"\0" * 16),
    "backwards": safetensors_file({"a": entry(8, 0, [2])}, b"\0" * 8),
    "negative place": safetensors_file({"a": entry(-8, 0, [2])}, b"\0" * 8),
    "negative shape": safetensors_file({"a": entry(0, 8, [-1, -2])}, b"\0" * 8),
    "true shape": safetensors_file({"a": entry(0, 4, [True])}, b"\0" * 4),
    "float shape": safetensors_file({"a": entry(0, 8, [2.0])}, b"\0" * 8),
    "many axes": safetensors_file({"a": entry(0, 4, [1] * 100_000)}, b"\0" * 4),
    "large sides": safetensors_file({"a": entry(0, 0, [1 << 62] * 100_000)}),
    "large empty": safetensors_file({"a": entry(0, 0, [0, 1 << 62])}),
    "other size": safetensors_file({"a": entry(0, 8, [3])}, b"\0" * 8),
    "other type": safetensors_file({"a": entry(0, 8, [8], "F8_E4M3")}, b"\0" * 8),
    "type list": safetensors_file({"a": entry(0, 8, [2], ["F32"])}, b"\0" * 8),  # pyright: ignore[reportArgumentType]
    "more keys": safetensors_file({"a": {**entry(0, 8), "code": "1"}}, b"\0" * 8),
    "fewer keys": safetensors_file({"a": {"dtype": "F32"}}),
    "no mapping": safetensors_file({"a": [1, 2]}),
    "metadata": safetensors_file({"__metadata__": {"a": 1}, **GOOD}, b"\0" * 16),
    "metadata list": safetensors_file({"__metadata__": [], **GOOD}, b"\0" * 16),
    "config": safetensors_file({"__metadata__": {"vit_flax_config": "{"}, **GOOD}, b"\0" * 16),
    "config deep": safetensors_file({"__metadata__": {"vit_flax_config": "[" * 200_000}, **GOOD}, b"\0" * 16),
    "config text": safetensors_file({"__metadata__": {"vit_flax_config": '"a"'}, **GOOD}, b"\0" * 16),
    "deep": safetensors_file(b'{"a":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "wide": safetensors_file(b'{"a":[' + b"[]," * 2_000_000 + b"[]]}"),
    "long number": safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,8]}}'),
    "not unicode": safetensors_file(b'{"\xff\xfe":1}'),
    "no end": safetensors_file(b'{"a":'),
    "list name": safetensors_file(b'{"a":NaN}'),
    "odd name": safetensors_file({"a\x1b[2J\nb": entry(0, 8)}, b"\0" * 8),
    "long name": safetensors_file({"a" * 100_000: entry(0, 8)}, b"\0" * 8),
    "many": safetensors_file({str(i): entry(0, 0) for i in range(60_000)}),
}  # fmt: skip


class TestBrokenSafetensors:
    @pytest.mark.parametrize("kind", BROKEN_SAFETENSORS)
    def test_is_refused(self, tmp_path, kind):
        (tmp_path / "a.safetensors").write_bytes(BROKEN_SAFETENSORS[kind])
        assert len(refused(tmp_path / "a.safetensors")) < 600

    def test_what_is_wrong_is_named(self, tmp_path):
        def message(kind):
            (tmp_path / "a").write_bytes(BROKEN_SAFETENSORS[kind])
            return refused(tmp_path / "a")

        assert "its header should have 1152921504606846976 bytes" in message("huge header")
        assert "'a' comes twice" in message("name twice")
        assert "'b' begins at byte 4 and the tensor before it ends at 8" in message("overlap")
        assert "'a' has 8 bytes for F32 of shape [3]" in message("other size")
        assert "a is of type 'F8_E4M3', which this library does not read" in message("other type")

    def test_the_library_agrees_with_what_is_read(self, tmp_path):
        import safetensors

        path = tmp_path / "a.safetensors"
        path.write_bytes(safetensors_file(GOOD, b"\0" * 16))
        assert read_safetensors(path).shapes == {"a": (2,), "b": (2,)}
        stricter = {"long header", "name twice", "key twice", "many axes", "large empty", "config", "config deep"}
        stricter |= {"config text", "other type", "odd name", "long name", "many", "more keys"}
        for kind, content in BROKEN_SAFETENSORS.items():
            path.write_bytes(content)
            if kind not in stricter:
                with pytest.raises(safetensors.SafetensorError), safetensors.safe_open(path, framework="numpy"):
                    pass


def npy(header: bytes, data: bytes = b"", version: bytes = b"\1\0") -> bytes:
    length = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header + data


def npz(content: bytes, method: int = zipfile.ZIP_STORED, name: str = "a.npy") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


FIELDS = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }"


def many_entries() -> bytes:
    # a table of contents of a million empty files that are all the same
    name = b"a.npy"
    record = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    table = record * 1_000_000
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(table), 4, 0)
    return b"PK\3\4" + table + end


def with_sizes(content: bytes, size: int) -> bytes:
    """Replaces the sizes that the table of contents claims."""
    at = content.rindex(b"PK\1\2")
    return content[: at + 20] + struct.pack("<LL", size, size) + content[at + 28 :]


BROKEN_NPZ = {
    "objects": npz(saved(np.array([{"a": 1}]))),
    "pickle": npz(npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\nsystem\n")),
    "texts": npz(saved(np.array(["a"]))),
    "records": npz(saved(np.zeros(2, [("a", "f4"), ("b", "f4")]))),
    "dates": npz(saved(np.zeros(2, "M8[s]"))),
    "more data": npz(npy(FIELDS, b"\0" * 9)),
    "less data": npz(npy(FIELDS, b"\0" * 7)),
    "long header": npz(npy(b" " * (1 << 20) + FIELDS, b"\0" * 8, b"\2\0")),
    "header claim": npz(b"\x93NUMPY\2\0\xff\xff\xff\xff" + FIELDS),
    "header cut": npz(b"\x93NUMPY\1\0"),
    "version": npz(npy(FIELDS, b"\0" * 8, b"\x09\0")),
    "no npy": npz(b"hello"),
    "empty npy": npz(b""),
    "code": npz(npy(b"__import__('os').system('true')")),
    "deep": npz(npy(b"(" * 5000)),
    "minus": npz(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"-" * 9000 + b"1,), }")),
    "nul": npz(npy(b"{'descr': '<f4\0', 'fortran_order': False, 'shape': (2,), }", b"\0" * 8)),
    "negative": npz(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,), }", b"\0" * 8)),
    "wrap": npz(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4), }")),
    "huge type": npz(npy(b"{'descr': '|V2147483647', 'fortran_order': False, 'shape': (0,), }")),
    "sub type": npz(npy(b"{'descr': ('<f4', (1000000000,)), 'fortran_order': False, 'shape': (0,), }")),
    "float shape": npz(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2.0,), }", b"\0" * 8)),
    "true shape": npz(npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }", b"\0" * 4)),
    "bomb": npz(npy(FIELDS.replace(b"2,", b"50000000,"), b"\0" * 200_000_000), zipfile.ZIP_DEFLATED),
    "lzma": npz(npy(FIELDS, b"\0" * 8), zipfile.ZIP_LZMA),
    "cut": npz(npy(FIELDS, b"\0" * 8))[:-30],
    "claim": with_sizes(npz(npy(b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000,), }")), 1_000_073),
    "nothing": npz(b"", name="readme.txt"),
    "beside": npz(b"hello", name="a.npy/readme.txt") ,
    "many": many_entries(),
    "only end": b"PK\5\6" + b"\0" * 18,
    "only begin": b"PK\3\4",
}  # fmt: skip


class TestBrokenNpz:
    @pytest.mark.parametrize("kind", BROKEN_NPZ)
    def test_is_refused(self, tmp_path, kind):
        (tmp_path / "a.npz").write_bytes(BROKEN_NPZ[kind])
        assert len(refused(tmp_path / "a.npz")) < 600

    def test_a_compressed_array_that_is_broken_inside(self, tmp_path):
        content = bytearray(npz(saved(np.random.default_rng(0).normal(size=1000)), zipfile.ZIP_DEFLATED))
        content[len(content) // 2] ^= 255
        (tmp_path / "a.npz").write_bytes(content)
        assert "broken zip file" in refused(tmp_path / "a.npz")


class TestOtherThings:
    def test_no_weights_at_all(self, tmp_path):
        for name, content, fault in (
            ("empty", b"", "is empty"),
            ("text", b"hello world, I am a text\n", "neither safetensors, a PyTorch file, .npz nor .msgpack"),
            ("short", b"\x08", "neither"),
            ("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
            ("npy", saved(np.ones(2)), "is a single array (.npy)"),
        ):
            (tmp_path / name).write_bytes(content)
            assert fault in refused(tmp_path / name)
        assert "no such file or folder" in refused(tmp_path / "nowhere")
        assert "no such file or folder" in refused("/dev/null")
        # what cannot be looked up is not there, for pathlib since 3.14
        assert ("no such file or folder" if sys.version_info >= (3, 14) else "cannot be read") in refused("a" * 5000)

    def test_links_in_a_circle(self, tmp_path):
        (tmp_path / "model.safetensors").symlink_to(tmp_path / "b")
        (tmp_path / "b").symlink_to(tmp_path / "model.safetensors")
        assert "no such file" in refused(tmp_path / "model.safetensors")
        assert "holds no weights" in refused(tmp_path)

    def test_pipes_are_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "model.safetensors")
        assert "holds no weights" in refused(tmp_path)
        assert "no such file" in refused(tmp_path / "model.safetensors")
