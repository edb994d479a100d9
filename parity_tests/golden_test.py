"""Training repeats its stored results: losses to the last bit on the same kind of machine, and the same programs."""

import json

import pytest

from parity_tests.golden import FILE, PRESETS, RECIPES, losses, lowered, machine
from vit_flax.parity.tolerances import OTHER_MACHINE

STORED = json.loads(FILE.read_text("utf-8"))
MEANT = "if this is meant: python -m parity_tests.golden"
pytestmark = pytest.mark.usefixtures("_float32")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_losses_of_20_steps(recipe: str) -> None:
    found, expected = losses(recipe), STORED["losses"][recipe]
    if machine() == STORED["machine"]:
        assert found == expected, MEANT
    else:
        assert found == pytest.approx(expected, rel=OTHER_MACHINE), MEANT


@pytest.mark.parametrize("preset", PRESETS)
def test_a_lowered_training_step(preset: str) -> None:
    if machine()["jax"] != STORED["machine"]["jax"]:
        pytest.skip("another JAX writes another program")
    assert lowered(preset) == STORED["steps"][preset], f"the training step of {preset} is another program; {MEANT}"
