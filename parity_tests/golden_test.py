"""Training repeats its stored results: losses to the last bit on the same kind of machine, and the same programs."""

import json
import subprocess
import sys

import pytest

from parity_tests.golden import FILE, PRESETS, lowered, machine
from vit_flax.parity.tolerances import OTHER_MACHINE

STORED = json.loads(FILE.read_text("utf-8"))
MEANT = "if this is meant: python -m parity_tests.golden"


def test_the_losses_of_20_steps() -> None:
    command = [sys.executable, "-m", "parity_tests.golden", "--losses"]  # a process that compiles as users do
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["machine"]["flags"] == STORED["machine"]["flags"], "no machine compares to the last bit"
    assert found["losses"].keys() == STORED["losses"].keys()
    for recipe, expected in STORED["losses"].items():
        if found["machine"] == STORED["machine"]:
            assert found["losses"][recipe] == expected, f"{recipe}: {MEANT}"
        else:
            assert found["losses"][recipe] == pytest.approx(expected, rel=OTHER_MACHINE), f"{recipe}: {MEANT}"


@pytest.mark.usefixtures("_float32")
@pytest.mark.parametrize("preset", PRESETS)
def test_a_lowered_training_step(preset: str) -> None:
    if machine()["jax"] != STORED["machine"]["jax"]:
        pytest.skip("another JAX writes another program")
    assert lowered(preset) == STORED["steps"][preset], f"the training step of {preset} is another program; {MEANT}"
