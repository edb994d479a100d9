"""Fine-tuning keeps a family's own layout, classifier and preprocessing, and its owner's library takes the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from parity_tests.peers import import_timm, import_transformers
from vit_flax import load, read_preprocessing
from vit_flax.cli.train import build_config
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LOGITS
from vit_flax.train.loop import Run

RNG = np.random.default_rng(0)
SMALL: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8
}  # fmt: skip
# what is published after masked image modelling: with its head, or without a classifier's pooling and norm
MASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("BeitForMaskedImageModeling", {"vocab_size": 5, "use_mask_token": True}),
    "data2vec": ("Data2VecVisionModel", {"use_relative_position_bias": True}),
    "vit, masked": ("ViTForMaskedImageModeling", {"encoder_stride": 8}),
    "deit, masked": ("DeiTForMaskedImageModeling", {"encoder_stride": 8}),
    "mae": ("ViTMAEForPreTraining", {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
                                     "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16}),
}  # fmt: skip
SLOW = ("vit, masked", "deit, masked", "mae", "dinov2_with_registers")
FAMILIES = ["vit", "dinov2", "dinov2_with_registers", "dinov3", *MASKED]
pytestmark = [
    pytest.mark.usefixtures("_float32"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 4), ("validation", 1)):
        for k, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (RNG.integers(0, 80, (20, 24, 3)) + 70 * k).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def _checkpoint(name: str, folder: Path) -> None:
    transformers = import_transformers()
    torch.manual_seed(0)
    if name == "vit":  # as google/vit-base-patch16-224-in21k: a tanh pooler behind the class token, and no head
        model = transformers.ViTModel(transformers.ViTConfig(**SMALL, intermediate_size=32))
    elif name == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL, mlp_ratio=2))
    elif name == "dinov2_with_registers":
        config = transformers.Dinov2WithRegistersConfig(**SMALL, mlp_ratio=2, num_register_tokens=2)
        model = transformers.Dinov2WithRegistersModel(config)
    elif name in MASKED:
        kind, extra = MASKED[name]
        config = getattr(transformers, f"{kind.split('For')[0].removesuffix('Model')}Config")
        model = getattr(transformers, kind)(config(**SMALL, intermediate_size=32, **extra))
    else:
        config = transformers.DINOv3ViTConfig(**SMALL, intermediate_size=32, num_register_tokens=2)
        model = transformers.DINOv3ViTModel(config)
    model.save_pretrained(folder)
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3],
                                               image_std=[0.4, 0.5, 0.6])  # fmt: skip
    processor.save_pretrained(folder)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in FAMILIES])
def test_a_family_without_a_head_becomes_its_own_classifier(name: str, photos: Path, tmp_path: Path) -> None:
    _checkpoint(name, tmp_path / "checkpoint")
    changes = {"checkpoint": str(tmp_path / "checkpoint"), "folder": str(photos), "data.batch_size": 12, "steps": 1,
               "peak_flops": 1e12, "data.threads": 1}  # fmt: skip
    config = build_config("finetune", changes, str(tmp_path / "run"))
    assert config.drop.drop_path_rate == 0.1
    assert (config.data.mean, config.data.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # not ImageNet's
    assert Run(config, quiet=True).run().finished
    final = tmp_path / "run" / "final"
    prepared = read_preprocessing(final)
    assert prepared == read_preprocessing(tmp_path / "checkpoint").replace(class_names=("ant", "bee", "cat"))
    model, params = load(final)
    assert model.config.representation_size is None
    images = RNG.standard_normal((2, 16, 16, 3)).astype(np.float32)
    ours = np.asarray(model.apply({"params": params}, images))
    if name == "dinov3":  # transformers has no classifier for it, timm has
        timm = import_timm()
        sizes: dict[str, Any] = {
            "img_size": 16,
            "patch_size": 8,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "mlp_ratio": 2,
        }
        sizes |= {"num_classes": 3, "num_reg_tokens": 2, "global_pool": "token"}
        # biases of q and v and none of k, as transformers' models have them, are those of timm's other attention
        theirs = timm.create_model("vit_small_patch16_dinov3", attn_type="eva", qkv_bias=True, **sizes)
        from safetensors.torch import load_file

        theirs.load_state_dict(load_file(final / "model.safetensors"), strict=True)
        run = theirs.eval()
    else:
        found = import_transformers().AutoModelForImageClassification.from_pretrained(final).eval()
        assert found.config.id2label == {0: "ant", 1: "bee", 2: "cat"}

        def run(x: torch.Tensor) -> torch.Tensor:
            return found(x).logits

    with torch.no_grad():
        expected = run(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    np.testing.assert_allclose(ours, expected, rtol=FLOAT32_LOGITS["rtol"], atol=FLOAT32_ABSOLUTE)


def test_fields_of_the_data_count_when_the_classes_are_counted(photos: Path, tmp_path: Path) -> None:
    _checkpoint("vit", tmp_path / "checkpoint")
    (photos / "labels.csv").write_text("file,labels\n" + "".join(
        f"{split}/{name}/{i}.png,{name}|animal\n" for split, count in (("train", 4), ("validation", 1))
        for name in ("ant", "bee", "cat") for i in range(count)
    ))  # fmt: skip
    changes = {"checkpoint": str(tmp_path / "checkpoint"), "folder": str(photos), "data.mean": (0.5,), "model.depth": 1}
    config = build_config("linear_probe", {**changes, "multi_label": True, "data.label_key": "labels"}, None)
    assert (config.model.num_classes, config.loss.name, config.data.mean) == (4, "binary", (0.5,))
    with pytest.raises(ValueError, match="has no column 'x'"):
        build_config("linear_probe", {**changes, "multi_label": True, "data.label_key": "x"}, None)
    own = {**changes, "data.mean": (0.5,), "image_size": 32}
    assert build_config("finetune", own, None).model.image_size == (32, 32)
