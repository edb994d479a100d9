"""Freed memory stays with the process, in a process of its own."""

import os
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from vit_flax.host_memory import keep_host_memory
if sys.argv[1] == "keep":
    assert keep_host_memory()
x = jnp.full((1024, 2048), 0.01)
y = jnp.full((2048, 4096), 0.01)
f = jax.jit(lambda x, y: jnp.tanh(jnp.tanh(x @ y) @ y.T).sum())
for call in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    f(x, y).block_until_ready()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


def _faults(how: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GLIBC_", "MALLOC_"))}
    clean["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env=clean)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_later_calls_fault_in_no_pages() -> None:
    assert _faults("as_it_is") > 2000
    assert _faults("keep") < 200


def test_an_environment_that_tunes_malloc_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from vit_flax.host_memory import keep_host_memory

    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert not keep_host_memory()
