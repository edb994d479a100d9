"""The table of what the compilers make of whole models."""

from benchmarks.accelerators import table


def test_the_table() -> None:
    row = {"model": "S", "depth": None, "batch": 64, "mode": "training", "chip": "v5e", "accessed": 3 * 10**9,
           "bytes": 2 * 10**9, "device_bytes": 10**9, "temporary_bytes": 10**8, "flops": 10**12, "uncounted": [],
           "bound_seconds": 0.002, "compile_seconds": 9.5}  # fmt: skip
    rows = [{**row, "contestant": "linen", "device_bytes": 2 * 10**9}, {**row, "contestant": "ours"}]
    rows.append({**{name: row[name] for name in ("model", "depth", "batch", "mode", "chip")},
                 "contestant": "ours, cudnn", "error": "it needs a GPU"})  # fmt: skip
    text = table({"rows": rows, "versions": {"libtpu": "0", "jax": "0"}})
    assert "| ours | 3.0 | 2.00 | 1.00 | 0.10 | 1.00 | 2.00 | 0.50 | 1.00 | 9.5 |" in text
    assert "| ours, cudnn | it needs a GPU |" in text
