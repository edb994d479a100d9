"""Breaks good checkpoints at random and loads them, in a process with limits on time and memory.

`python -m parity_tests.fuzzing COUNT SEED` prints a JSON object: how many were read, refused, and what failed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import pickle
import pickletools
import random
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from parity_tests.guarded import limit_memory, outcome, read_all

MEGABYTES = 1000
INTERESTING = (b"\0", b"\xff", b"\x80", b"[", b"{", b'"', b"-", b"9" * 20, b"\xff" * 8, b"\x7f\xff\xff\xff", b"(" * 50)


def run(count: int, seed: int, seconds: int = 3600) -> dict[str, Any]:
    """Returns the result of a process of its own on `count` broken files."""
    command = [sys.executable, "-m", "parity_tests.fuzzing", str(count), str(seed)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout)


def good_files() -> dict[str, bytes]:
    """Checkpoints of a small model, of every kind that is read."""
    import torch
    from flax import serialization
    from safetensors.numpy import save

    import vit_flax
    from vit_flax.convert.safetensors_file import CONFIG_KEY

    rng = np.random.default_rng(0)
    config = {"depth": 1, "embed_dim": 4, "num_heads": 2, "image_size": 4, "patch_size": 2, "num_classes": 3}
    model = vit_flax.create_model("vit_tiny_patch16_224", **config)
    shapes = vit_flax.models.shapes.expected_shapes(model)  # pyright: ignore[reportAttributeAccessIssue]
    params: dict[str, Any] = {}
    for path, shape in shapes.items():
        *folders, leaf = path.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[leaf] = rng.normal(size=shape).astype(np.float32)
    tensors = vit_flax.to_state_dict(model, params, "timm")
    stored = json.dumps({**model.config.to_dict(), "layout": "timm"})
    torches = {name: torch.from_numpy(array.copy()) for name, array in tensors.items()}
    nested = {
        "model": torches,
        "epoch": 3,
        "optimizer": {"state": {0: {"step": torch.ones(1)}}, "groups": [{"lr": 0.1}]},
    }
    settings = argparse.Namespace(lr=np.float64(0.1), output_dir=Path("x"), best=defaultdict(list, a=[1]), seed=b"1")

    def written(write: Callable[[io.BytesIO], Any]) -> bytes:
        out = io.BytesIO()
        write(out)
        return out.getvalue()

    return {
        "safetensors": save(tensors, {"format": "pt"}),
        "safetensors with config": save(tensors, {CONFIG_KEY: stored}),
        "npz": written(lambda out: np.savez(out, **tensors)),  # pyright: ignore[reportArgumentType]
        "npz compressed": written(lambda out: np.savez_compressed(out, **tensors)),  # pyright: ignore[reportArgumentType]
        "msgpack": serialization.msgpack_serialize(tensors),
        "torch": written(lambda out: torch.save(torches, out)),
        "torch nested": written(lambda out: torch.save(nested, out)),
        "torch with settings": written(lambda out: torch.save({"model": torches, "args": settings}, out)),
        "torch legacy": written(lambda out: torch.save(torches, out, _use_new_zipfile_serialization=False)),
    }


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Breaks a file in one to four places; the parts inside a zip file or behind a header, too."""
    if rng.random() < 0.4:
        inside = _inside(data, rng)
        if inside is not None:
            return inside
    for _ in range(rng.randint(1, 4)):
        data = _broken(data, rng)
    return data


def _broken(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return rng.randbytes(rng.randint(0, 40))
    # headers come first or last: half of all damage is done there
    at = rng.choice(
        [rng.randrange(len(data)), rng.randrange(min(len(data), 400)), -rng.randint(1, min(len(data), 400))]
    )
    at %= len(data)
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[at + rng.randint(1, 16) :]
    if kind == 3:
        return data[:at] + rng.choice(INTERESTING) + data[at:]
    if kind == 4:
        piece = rng.choice(INTERESTING)
        return data[:at] + piece + data[at + len(piece) :]
    if kind == 5:
        other = rng.randrange(len(data))
        return data[:at] + data[other : other + rng.randint(1, 64)] + data[at:]
    if kind == 6:
        number = rng.choice([0, 1, -1, 1 << 31, (1 << 63) - 1, len(data), rng.getrandbits(64)]) & ((1 << 64) - 1)
        return data[:at] + struct.pack("<Q", number) + data[at + 8 :]
    digits = [i for i, byte in enumerate(data[:5000]) if 48 <= byte <= 57]
    if not digits:
        return data + data
    at = rng.choice(digits)
    return data[:at] + str(rng.choice([0, 9, 10**9, 1 << 62, -1])).encode() + data[at + 1 :]


def _inside(data: bytes, rng: random.Random) -> bytes | None:
    """Breaks a part of the file and adapts sizes and checksums, so that the damage is not noticed at once."""
    if data[:2] == b"PK":
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            names = old.namelist()
            weights = [20 if name.endswith("data.pkl") else 1 for name in names]
            chosen = rng.choices(names, weights)[0]
            for info in old.infolist():
                content = old.read(info)
                if info.filename == chosen:
                    content = _broken_pickle(content, rng) if chosen.endswith(".pkl") else _broken(content, rng)
                new.writestr(info.filename, content, info.compress_type)
        return out.getvalue()
    if data[8:9] == b"{":
        length = int.from_bytes(data[:8], "little")
        header = _broken(data[8 : 8 + length], rng)
        if rng.random() < 0.5:
            header = _broken_json(data[8 : 8 + length], rng)
        return struct.pack("<Q", len(header)) + header + data[8 + length :]
    return None


def _broken_json(header: bytes, rng: random.Random) -> bytes:
    found = json.loads(header)
    name = rng.choice([key for key in found if key != "__metadata__"])
    entry = dict(found[name])
    odd: list[Any] = [None, -1, 1 << 62, [], {}, "F64", "", True, 1.5, [0, 1 << 40], [1] * 20, [0, 0]]
    entry[rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(odd)
    found[rng.choice([name, "blocks.999999999.norm1.weight", "\n", "head.weight"])] = entry
    return json.dumps(found).encode()


def _broken_pickle(data: bytes, rng: random.Random) -> bytes:
    if rng.random() < 0.5:
        return _broken(data, rng)
    # whole operations moved, doubled or replaced
    ends = [place for _, _, place in pickletools.genops(data) if place is not None] + [len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(ends)]
    for _ in range(rng.randint(1, 3)):
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        change = rng.randrange(4)
        if change == 0:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif change == 1:
            pieces.insert(at, pieces[other])
        elif change == 2:
            del pieces[at]
        else:
            pieces[at] = pickle.dumps(rng.choice([1 << 62, -1, None, (), {}, "x", b"y", 1.5, [1] * 5]), 2)[2:-1]
    return b"".join(pieces)


def load_whole(path: str) -> None:
    """Reads every tensor, then loads the model with the fields that the file does not say."""
    import vit_flax

    read_all(path)
    vit_flax.load(path, num_heads=2, image_size=4, norm_eps=1e-6, activation="gelu", global_pool="token")


def main(count: int, seed: int) -> None:
    """Breaks and loads; prints the counts and the first failures."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    files = good_files()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        for name, data in files.items():  # all of them load as they are, which also compiles what will be used
            path.write_bytes(data)
            load_whole(str(path))
            assert name
        limit_memory(MEGABYTES)
        counts: Counter[str] = Counter()
        failures = []
        for i in range(count):
            rng = random.Random(seed * 1_000_003 + i)
            name = rng.choice(list(files))
            path.write_bytes(mutate(files[name], rng))
            read = outcome(lambda: read_all(str(path)))
            result = outcome(lambda: load_whole(str(path)), lines=100) if read == "read" else read
            counts[result.split(":")[0]] += 1
            if result.startswith("failed"):
                failures.append(f"{name}, seed {seed}, number {i}: {result[:500]}")
        left = [entry.name for entry in Path(folder).iterdir()]
    print(json.dumps({"counts": counts, "failures": failures[:20], "left": left}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
