import re

import numpy as np
import pytest

from vit_flax.convert import Checkpoint, ConversionError, from_mapping, unwrap

NAMES = ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight")
HUGGINGFACE = (
    "vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight",
    "vit.encoder.layer.0.layernorm_before.weight", "classifier.weight",
)  # fmt: skip


def unwrapped(tensors: dict, entry: str | None = None) -> Checkpoint:
    return unwrap(from_mapping(tensors), entry)


def plain(prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: np.full(2, index) for index, name in enumerate(NAMES)}


def z(*names: str) -> dict[str, np.ndarray]:
    return dict.fromkeys(names, np.zeros(1))


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
        {"algorithm": {"trunk": plain("net.0.")}},
        plain("_orig_mod.module."),
        plain("_fsdp_wrapped_module."),
        {"ema": plain("module._orig_mod.model.")},
    ],
)
def test_wrapping_is_taken_off(wrapped: dict) -> None:
    checkpoint = unwrapped(wrapped)
    assert set(checkpoint.shapes) == set(NAMES)
    assert [checkpoint.read(name)[0] for name in NAMES] == [0, 1, 2]


def test_heads_beside_a_backbone_keep_their_names() -> None:
    teacher = {**plain("module.backbone."), "module.head.last_layer.weight_g": np.zeros(1)}
    assert set(unwrapped({"teacher": teacher}).shapes) == {*NAMES, "head.last_layer.weight_g"}


def test_the_backbone_of_the_tutorials_model_is_no_wrapper() -> None:
    tensors = z("patch_tokens.project.weight", "backbone.cls_token", "backbone.blocks.0.neuralnet.fc1.weight")
    assert set(unwrapped(tensors).shapes) == set(tensors)


def test_chunks_of_blocks_are_numbered_through() -> None:
    tensors = {"blocks.0.0.norm1.weight": np.zeros(1), "blocks.1.1.norm1.weight": np.ones(1)}
    checkpoint = unwrapped(tensors)
    assert set(checkpoint.shapes) == {"blocks.0.norm1.weight", "blocks.1.norm1.weight"}
    assert checkpoint.read("blocks.1.norm1.weight")[0] == 1


def test_blocks_numbered_anew_in_every_chunk_are_left_alone() -> None:
    tensors = {"blocks.0.0.norm1.weight": np.zeros(1), "blocks.1.0.norm1.weight": np.ones(1)}
    assert set(unwrapped(tensors).shapes) == set(tensors)


def test_wrappers_inside_names_are_taken_off() -> None:
    tensors = {
        "patch_embed._orig_mod.proj.weight": np.zeros(1),
        "blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module.attn.qkv.weight": np.ones(1),
    }
    assert set(unwrapped(tensors).shapes) == {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}


def test_names_that_only_a_known_model_has_are_not_needed() -> None:
    checkpoint = unwrapped({"state_dict": {"module.conv1.weight": np.zeros(1), "module.fc.bias": np.ones(1)}})
    assert set(checkpoint.shapes) == {"conv1.weight", "fc.bias"}


@pytest.mark.parametrize(
    ("wrapped", "note"),
    [
        ({**plain("backbone."), **z("decode_head.conv.weight", "neck.a", "neck.b")},
         "took backbone, left out neck (2 tensors), decode_head (1 tensor)"),
        ({**plain("module."), "n_averaged": np.array(3)}, "took module, left out n_averaged (1 tensor)"),
        ({"state_dict": {**plain("model."), **z("criterion.weight")}, "optimizer": {"state": {0: z("exp_avg")}}},
         "took state_dict/model, left out state_dict/criterion (1 tensor), optimizer (1 tensor)"),
        ({**plain("encoder."), **z("projector.0.weight")}, "took encoder, left out projector (1 tensor)"),
        ({**plain("image_encoder.net."), **z("text.0.weight")}, "took image_encoder/net, left out text (1 tensor)"),
        ({"model": {**plain("module.visual_encoder."), **z("module.bert.x")}},
         "took model/module/visual_encoder, left out model/module/bert (1 tensor)"),
        # VISSL's, a model behind its normalisation, DeepSpeed's, fastai's
        ({"classy_state_dict": {"base_model": {"model": {"trunk": plain("base_model."), "heads": z("0.clf.weight")}}}},
         "took classy_state_dict/base_model/model/trunk/base_model, left out "
         "classy_state_dict/base_model/model/heads (1 tensor)"),
        ({**plain("model.1."), **z("model.0.mean", "model.0.std")}, "took model/1, left out model/0 (2 tensors)"),
        ({"module": plain("module."), "optimizer": {"fp32_flat_groups": [np.zeros(3)]}, "ds_version": "0.1"},
         "took module/module, left out optimizer (1 tensor)"),
        ({"model": {**plain("0.model."), **z("1.8.weight")}, "opt": {}},
         "took model/0/model, left out model/1 (1 tensor)"),
    ],
)  # fmt: skip
def test_what_stands_beside_the_only_model_is_named(wrapped: dict, note: str) -> None:
    checkpoint = unwrapped(wrapped)
    assert set(checkpoint.shapes) == set(NAMES)
    assert [told.replace(".", "/") for told in checkpoint.notes] == [note.replace(".", "/")]


def test_a_part_of_a_larger_model_of_hugging_face() -> None:
    tensors = {f"model.{name}": np.zeros(1) for name in HUGGINGFACE}
    assert set(unwrapped(tensors).shapes) == set(HUGGINGFACE)
    checkpoint = unwrapped({**tensors, **z("model.text.weight", "loss.weight")})
    assert set(checkpoint.shapes) == set(HUGGINGFACE)
    assert checkpoint.notes == ("took model, left out model.text (1 tensor), loss (1 tensor)",)


OTHER = {name: array + 10 for name, array in plain().items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        {"student": plain("module."), "teacher": {f"module.{name}": array for name, array in OTHER.items()}},
        {"state_dict": {"student": plain(), "teacher": OTHER}},
        {"model": {**plain("student.backbone."), **{f"teacher.backbone.{name}": a for name, a in OTHER.items()}}},
        {
            "state_dict": {**plain("module.student."), **{f"module.teacher.{n}": a for n, a in OTHER.items()}},
            "epoch": 1,
        },
        {**plain("a.student.x."), **{f"b.teacher.x.{name}": array for name, array in OTHER.items()}},
    ],
)
def test_several_sets_of_weights_are_not_chosen_between(wrapped: dict) -> None:
    with pytest.raises(ConversionError, match="several sets of weights") as error:
        unwrapped(wrapped)
    spelled = re.search(r"\((.*?)\); say which with `entry=('.*')`", str(error.value))
    assert spelled is not None
    first, second = spelled[1].split(", ")
    assert spelled[2] == repr(first)
    for entry, value in ((first, 2), (second, 12)):  # the advice, followed
        assert unwrapped(wrapped, entry).read("norm.weight")[0] == value
        assert len(unwrapped(wrapped, entry).notes) == 1


def test_an_entry_is_any_part_of_the_way_however_spelled() -> None:
    wrapped = {"state_dict": {**plain("module.base_encoder."), **{f"module.momentum.{n}": a for n, a in OTHER.items()}}}
    for entry in ("momentum", "module.momentum", "module/momentum", "state_dict/module.momentum",
                  "state_dict.module.momentum", "state_dict/module/momentum/"):  # fmt: skip
        assert unwrapped(wrapped, entry).read("norm.weight")[0] == 12, entry
    with pytest.raises(ConversionError, match="several sets of weights"):
        unwrapped(wrapped, "state_dict")


def test_an_entry_that_is_not_there_or_twice() -> None:
    both = {"student": plain("module."), "teacher": plain("module.")}
    with pytest.raises(ConversionError, match="no entry 'ema'; it has student, teacher"):
        unwrapped(both, "ema")
    with pytest.raises(ConversionError, match="has entry 'module' more than once; give more of it: 'student/module'"):
        unwrapped(both, "module")
    assert set(unwrapped(both, "student/module").shapes) == set(NAMES)


def test_a_model_at_the_top_beside_another() -> None:
    wrapped = {**plain(), **{f"ema.{name}": array for name, array in OTHER.items()}}
    with pytest.raises(
        ConversionError, match=r"\(the top, ema\); say which with `entry='ema'` or `entry=''` for the top"
    ):
        unwrapped(wrapped)
    assert unwrapped(wrapped, "").read("norm.weight")[0] == 2
    assert set(unwrapped(wrapped, "").shapes) == set(NAMES)
    assert unwrapped(wrapped, "ema").read("norm.weight")[0] == 12


def test_an_entry_of_any_name_can_be_taken() -> None:
    assert set(unwrapped({"net": plain(), "step": 1}, "net").shapes) == set(NAMES)
