"""Freed memory stays with the process; each test runs in a process of its own."""

import os
import subprocess
import sys

import pytest

needs_glibc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from vit_flax.host_memory import keep_host_memory
if sys.argv[1] == "keep":
    assert keep_host_memory()
x = jnp.full((1024, 2048), 0.01)
y = jnp.full((2048, 4096), 0.01)
f = jax.jit(lambda x, y: jnp.tanh(jnp.tanh(x @ y) @ y.T).sum())
faults = []
for call in range(12):  # jaxlib 0.12 takes several blocks, which find their places in six calls
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x, y).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1] if sys.argv[1] == "keep" else sum(faults[2:]))
"""

LARGE = """
import ctypes, resource
from vit_flax.host_memory import keep_host_memory
assert keep_host_memory()
c = ctypes.CDLL(None)
c.malloc.argtypes, c.malloc.restype, c.free.argtypes = [ctypes.c_size_t], ctypes.c_void_p, [ctypes.c_void_p]
for call in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = c.malloc(5 * 2**29)  # 2.5 GiB, as the temporaries of a large step
    ctypes.memset(block, 1, 5 * 2**29)
    c.free(block)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""

AHEAD = """
import sys
from vit_flax.host_memory import keep_host_memory
if sys.argv[1] == "after":
    import jax
assert keep_host_memory()
import jax
print(int(jax.config.read("jax_cpu_enable_async_dispatch")))
"""


def _run(script: str, *how: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    clean["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", script, *how], capture_output=True, text=True, check=True, env=clean)
    return int(done.stdout)


@needs_glibc
def test_later_calls_fault_in_no_pages() -> None:
    assert _run(FAULTS, "as_it_is") > 2000
    assert _run(FAULTS, "keep") < 200


@needs_glibc
def test_more_than_two_gibibytes_stay_too() -> None:
    assert _run(LARGE) < 200


@needs_glibc
@pytest.mark.parametrize("when", ["before", "after"])
def test_no_call_begins_before_the_last_has_freed_its_memory(when: str) -> None:
    assert _run(AHEAD, when) == 0


def test_an_environment_that_tunes_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_flax.host_memory import keep_host_memory

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert not keep_host_memory()
