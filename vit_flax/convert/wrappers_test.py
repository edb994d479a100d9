import numpy as np
import pytest

from vit_flax.convert import Checkpoint, ConversionError, from_mapping, unwrap

NAMES = ("patch_embed.proj.weight", "blocks.0.norm1.weight", "norm.weight")


def unwrapped(tensors: dict, entry: str | None = None) -> Checkpoint:
    return unwrap(from_mapping(tensors), entry)


def plain(prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.full(2, index) for index, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    "wrapped",
    [
        plain(),
        {"model": plain(), "epoch": 3, "args": None},
        {"state_dict": plain("module.")},
        {"state_dict_ema": plain("module._orig_mod.")},
        {"state_dict": plain("model."), "optimizer": {"state": {0: {"exp_avg": np.zeros(2)}}, "param_groups": [1]}},
        {"teacher": plain("module.backbone.")},
        {"encoder": plain("module."), "predictor": {"module.x": np.zeros(1)}, "opt": {}},
        plain("_orig_mod."),
        plain("module.encoder."),
        {"model": {"state_dict": plain()}},
    ],
)
def test_wrapping_is_taken_off(wrapped: dict) -> None:
    checkpoint = unwrapped(wrapped)
    assert set(checkpoint.shapes) == set(NAMES)
    assert [checkpoint.read(name)[0] for name in NAMES] == [0, 1, 2]


def test_heads_beside_a_backbone_keep_their_names() -> None:
    teacher = {**plain("module.backbone."), "module.head.last_layer.weight_g": np.zeros(1)}
    assert set(unwrapped({"teacher": teacher}).shapes) == {*NAMES, "head.last_layer.weight_g"}


def test_a_backbone_beside_anything_else_is_no_wrapper() -> None:
    tensors = {**plain("backbone."), "patch_tokens.project.weight": np.zeros(1)}
    assert set(unwrapped(tensors).shapes) == set(tensors)


def test_chunks_of_blocks_are_numbered_through() -> None:
    tensors = {"blocks.0.0.norm1.weight": np.zeros(1), "blocks.1.1.norm1.weight": np.ones(1)}
    checkpoint = unwrapped(tensors)
    assert set(checkpoint.shapes) == {"blocks.0.norm1.weight", "blocks.1.norm1.weight"}
    assert checkpoint.read("blocks.1.norm1.weight")[0] == 1


def test_blocks_numbered_anew_in_every_chunk_are_left_alone() -> None:
    tensors = {"blocks.0.0.norm1.weight": np.zeros(1), "blocks.1.0.norm1.weight": np.ones(1)}
    assert set(unwrapped(tensors).shapes) == set(tensors)


def test_several_sets_of_weights_are_not_chosen_between() -> None:
    both = {"student": plain("module."), "teacher": {name: array + 10 for name, array in plain("module.").items()}}
    with pytest.raises(ConversionError, match=r"several sets of weights \(teacher, student\).*entry='teacher'"):
        unwrapped(both)
    assert unwrapped(both, "teacher").read("norm.weight")[0] == 12
    assert unwrapped(both, "student").read("norm.weight")[0] == 2
    with pytest.raises(ConversionError, match="no entry 'ema'; it has student, teacher"):
        unwrapped(both, "ema")


def test_an_entry_of_any_name_can_be_taken() -> None:
    assert set(unwrapped({"net": plain(), "step": 1}, "net").shapes) == set(NAMES)
