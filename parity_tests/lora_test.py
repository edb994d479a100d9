"""LoRA against peft: values, gradients, twenty steps, and folders both ways."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

import vit_flax
from parity_tests.peers import import_timm, import_transformers
from vit_flax.convert import ConversionError
from vit_flax.lora.adapters import begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.dropout import applied_with_dropout, beside_kernels
from vit_flax.lora.peft_folder import Adapted, load_adapter, write_adapter
from vit_flax.models import build_model
from vit_flax.models.shapes import expected_shapes
from vit_flax.parity.tolerances import FLOAT32_LOGITS, FLOAT64_RELATIVE, FLOAT64_ROUNDING
from vit_flax.recipes.adapting import classifier_of
from vit_flax.train.config import DataConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from vit_flax.train.optimizer import make_optimizer
from vit_flax.train.state import TrainState, model_params
from vit_flax.train.step import compute_loss, train_step
from vit_flax.train.weights import export_adapter, initial_params

transformers = import_transformers()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
    "num_labels": 3,
}  # fmt: skip
RNG = np.random.default_rng(0)
IMAGES = RNG.random((8, 8, 8, 3))
LABELS = RNG.integers(0, 3, 8).astype(np.int32)
NORMALISED = (IMAGES - 0.5) / 0.5
CLOSE: dict[str, Any] = {"rtol": FLOAT64_RELATIVE, "atol": FLOAT64_ROUNDING}


def pixels() -> torch.Tensor:
    return torch.from_numpy(NORMALISED).permute(0, 3, 1, 2)


def make_base(family: str, folder: Path) -> Any:
    """Returns a model of transformers in float64, saved into the folder."""
    torch.manual_seed(0)
    if family == "vit":
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, intermediate_size=32))
    else:
        model = transformers.Dinov2ForImageClassification(
            transformers.Dinov2Config(**SIZES, mlp_ratio=2, use_swiglu_ffn=family == "dinov2_swiglu")
        )
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that nothing is zero or one
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    model.config._name_or_path = model.name_or_path = str(folder)
    return model


def adapt(model: Any, folder: Path, **config: Any) -> Any:
    """Returns the model with random adapters, saved into the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = peft.get_peft_model(model, peft.LoraConfig(**config))
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn_like(parameter))
        adapted.save_pretrained(folder)
    return adapted


def train_config(adapted: Adapted, steps: int = 20) -> Any:
    return TrainConfig(
        model=adapted.model.config, data=DataConfig(batch_size=8), lora=adapted.lora, steps=steps,
        optimizer=OptimizerConfig(learning_rate=1e-2, weight_decay=0.05, b2=0.98),
        schedule=ScheduleConfig(name="constant"), precision="float32",
    ).resolve(8)  # fmt: skip


def loss_of(model: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(pixels()).logits, torch.from_numpy(LABELS).long())


def check_gradients(theirs: Any, ours: Adapted, config: Any, folder: Path) -> None:
    """Compares the gradients of all adapters, by the names that a folder gets."""
    loss = loss_of(theirs)
    loss.backward()

    def our_loss(trained: Any) -> jax.Array:
        params = model_params(trained, ours.frozen, config)
        return compute_loss(params, None, jnp.asarray(NORMALISED), jnp.asarray(LABELS), jax.random.key(0), config)

    value, gradients = jax.jit(jax.value_and_grad(our_loss))(ours.trained)
    np.testing.assert_allclose(value, loss.item(), rtol=FLOAT64_RELATIVE)
    write_adapter(folder, ours.model.config, gradients, ours.frozen, ours.lora, ours.layout)
    found = load_file(folder / "adapter_model.safetensors")
    wanted = {name.replace(".default", ""): p.grad for name, p in theirs.named_parameters() if ".lora_" in name}
    assert wanted.keys() == {name for name in found if ".lora_" in name}
    for name, grad in wanted.items():
        np.testing.assert_allclose(found[name], grad.numpy(), **CLOSE, err_msg=name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("vit", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], "lora_alpha": 16}),
        ("dinov2", {"target_modules": ["k_proj", "fc1"], "modules_to_save": ["classifier"], "bias": "lora_only",
                    "use_rslora": True, "rank_pattern": {"layer.0.mlp.fc1": 2}, "alpha_pattern": {"fc1": 3}}),
    ],
)  # fmt: skip
def test_twenty_steps_are_those_of_peft(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(family, tmp_path / "base")
    theirs = adapt(base, tmp_path / "adapter", r=4, **options)
    ours = load_adapter(tmp_path / "adapter")
    config = train_config(ours)
    batch = {"image": IMAGES, "label": LABELS}

    if family == "dinov2":
        check_gradients(theirs, ours, config, tmp_path / "gradients")
    trainable = [p for p in theirs.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trainable if p.ndim > 1], "weight_decay": 0.05},
              {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98))
    state = TrainState(
        step=jax.numpy.zeros((), "int32"), params=ours.trained, frozen=ours.frozen,
        opt_state=make_optimizer(config, ours.trained).init(ours.trained),
    )  # fmt: skip
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == sum(p.numel() for p in trainable)
    step = jax.jit(partial(train_step, config=config))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(theirs)
        loss.backward()
        optimizer.step()
        state, scalars = step(state, batch)
        losses.append((float(scalars["loss"]), loss.item()))
    mine, other = np.array(losses).T
    assert other[-1] < other[0] / 2
    np.testing.assert_allclose(mine, other, rtol=FLOAT64_RELATIVE)

    write_adapter(tmp_path / "after", ours.model.config, state.params, ours.frozen, ours.lora, ours.layout,
                  str(tmp_path / "base"))  # fmt: skip
    with torch.no_grad():
        expected = theirs.eval()(pixels()).logits.numpy()
    model, params = vit_flax.load(tmp_path / "after")
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, NORMALISED), expected, rtol=FLOAT64_RELATIVE)


def begun(config: vit_flax.ViTConfig, lora: LoraConfig, params: Any = None) -> tuple[Any, Any]:
    """Returns random adapters and the frozen parameters, of `params` or of random ones."""
    rng = np.random.default_rng(1)
    if params is None:
        shapes = expected_shapes(build_model(config))
        params = unflatten_dict({path: rng.normal(size=shape) for path, shape in shapes.items()}, sep="/")
    trained, frozen = begin(jax.random.key(1), params, lora)
    return jax.tree.map(lambda leaf: np.asarray(leaf) + rng.normal(0, 0.2, leaf.shape), trained), frozen


def loaded_by_peft(model: Any, folder: Path) -> Any:
    """Returns the model with a folder's adapter as peft loads it, without missing or unexpected keys."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        adapted = peft.PeftModel.from_pretrained(model, folder)
    assert not [str(warning.message) for warning in told if "missing" in str(warning.message)]
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    found = set_peft_model_state_dict(adapted, load_peft_weights(str(folder), device="cpu"))
    assert not found.unexpected_keys
    return adapted.double().eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("vit", {"targets": "qkv,mlp/fc1,patch_embed/proj", "bias": "lora_only", "rslora": True}),
        ("dinov2_swiglu", {"targets": "q,gate,attn/proj", "bias": "all", "modules_to_save": "head,blocks_1/norm2",
                           "ranks": (("gate", 3),)}),
    ],
)  # fmt: skip
def test_peft_loads_what_is_written_here(family: str, fields: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_base(family, tmp_path / "base")
    model, params = vit_flax.load(tmp_path / "base")
    lora = LoraConfig(**{"rank": 2, "alpha": 3, **fields})
    trained, frozen = begun(model.config, lora, params)
    write_adapter(tmp_path / "adapter", model.config, trained, frozen, lora, f"huggingface_{family.split('_')[0]}",
                  str(tmp_path / "base"))  # fmt: skip
    expected = jax.jit(model.apply)({"params": merged(frozen, trained, lora)}, NORMALISED)
    with torch.no_grad():
        np.testing.assert_allclose(
            loaded_by_peft(theirs, tmp_path / "adapter")(pixels()).logits, expected, rtol=FLOAT64_RELATIVE
        )
    if family == "dinov2_swiglu":
        return  # whose file has gates and values in one tensor: an adapter of a part of it is not read
    back = vit_flax.load(tmp_path / "adapter")[1]
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING),
        back,
        merged(frozen, trained, lora),
    )


@pytest.mark.filterwarnings("ignore")
def test_parts_of_a_fused_layer_of_timm_become_one_adapter(tmp_path: Path) -> None:
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    theirs = import_timm().create_model("vit_tiny_patch16_224", **sizes).double().eval()
    model, params = vit_flax.from_state_dict(
        theirs.state_dict(),
        config="vit_tiny_patch16_224",
        num_heads=2,
        image_size=8,
        patch_size=4,
        embed_dim=16,
        depth=1,
        num_classes=3,
    )
    lora = LoraConfig(targets="q,v", rank=2, alpha=3, ranks=(("v", 3),), alphas=(("q", 5),), bias="lora_only")
    trained, frozen = begun(model.config, lora, params)
    write_adapter(tmp_path, model.config, trained, frozen, lora, "timm")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["target_modules"] == ["blocks.0.attn.qkv"]
    assert values["rank_pattern"] == {"blocks.0.attn.qkv": 5}
    expected = jax.jit(model.apply)({"params": merged(frozen, trained, lora)}, NORMALISED)
    with torch.no_grad():
        np.testing.assert_allclose(loaded_by_peft(theirs, tmp_path)(pixels()), expected, rtol=FLOAT64_RELATIVE)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_float32")
def test_a_run_on_a_model_without_classes_leaves_what_peft_loads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(**SIZES, mlp_ratio=2)).save_pretrained(tmp_path / "base")
    bare = vit_flax.load(tmp_path / "base")[0].config
    model, _ = classifier_of(bare, 3, "huggingface_dinov2")
    assert (bare.mask_token, model.mask_token) == (True, False)  # what pre-training alone uses is no fault
    config = TrainConfig(model=model, init_from=str(tmp_path / "base"), lora=LoraConfig(), steps=1)
    assert config.lora is not None
    trained, frozen = jax.tree.map(np.float32, begun(model, config.lora, initial_params(config)))
    params = merged(frozen, trained, config.lora)
    assert export_adapter(tmp_path / "adapter", config, trained, frozen, params) == ""
    theirs = transformers.Dinov2ForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    with torch.no_grad():
        found = loaded_by_peft(theirs, tmp_path / "adapter").float()(pixels().float()).logits
    expected = jax.jit(build_model(model).apply)({"params": params}, NORMALISED.astype(np.float32))
    np.testing.assert_allclose(found, expected, **FLOAT32_LOGITS)
    # positions of another size are in no adapter
    larger = config.replace({"model.image_size": 16})
    fault = export_adapter(tmp_path / "adapter", larger, trained, frozen, params)
    assert "the model of this run has another image_size" in fault
    assert not (tmp_path / "adapter").exists()


def test_what_peft_has_no_place_for_is_refused(tmp_path: Path) -> None:
    config = vit_flax.ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=3)
    for layout, lora, said in (
        ("torchvision", LoraConfig(), "in_proj_weight .* for which peft has no adapter"),
        ("google_npz", LoraConfig(targets="fc1"), "for which peft has no adapter"),
        ("big_vision_scan", LoraConfig(), "not how a torch model has its tensors in memory"),
    ):
        with pytest.raises(ConversionError, match=said):
            write_adapter(tmp_path / "adapter", config, *begun(config, lora), lora, layout)
    assert not (tmp_path / "adapter").exists()


def test_next_to_no_dropout_is_the_merged_model() -> None:
    config = vit_flax.ViTConfig(
        image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=2, num_heads=2, num_classes=3
    )  # fmt: skip
    lora = LoraConfig(targets=("q", "v", "attn/proj", "mlp/fc2"), rank=2)
    model = build_model(config, scan=True, remat="full")
    trained, frozen = begun(config, lora)

    def adapted(rate: float, key: jax.Array) -> Any:
        with applied_with_dropout(rate):
            params = beside_kernels(frozen, trained, lora, scan=True)
            return model.apply({"params": params}, IMAGES, rngs={"dropout": key})

    expected = jax.jit(model.apply)({"params": merged(frozen, trained, lora)}, IMAGES)
    found = [jax.jit(partial(adapted, rate))(jax.random.key(0)) for rate in (1e-12, 0.5)]
    np.testing.assert_allclose(found[0], expected, **CLOSE)
    assert np.abs(found[1] - expected).max() > 1e-3
