"""The PyTorch reference against the tutorial's worked example, its formulas and naive recomputations."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vit_flax.parity.tolerances import FLOAT32_EPS, FLOAT64_ROUNDING
from vit_flax.reference import (
    Attention,
    Encoding,
    NeuralNet,
    Patch_Tokenization,
    T2T_ViT,
    Tokens2Token,
    TokenTransformer,
    ViT_Backbone,
    ViT_Model,
    digits,
    digits_images,
    digits_split,
    get_sinusoid_encoding,
    load_digits_reference,
    train_digits,
)
from vit_flax.reference.digits import CONFIG_NAME, CONSTRUCTOR_NAMES

SMALL = {"img_size": (3, 8, 12), "patch_size": 4, "token_len": 24, "preds": 5, "num_heads": 3, "depth": 2}
SMALL_T2T = {
    "img_size": (2, 40, 28),
    "softsplit_kernels": (7, 3, 3),
    "preds": 5,
    "token_len": 24,
    "token_chan": 12,
    "num_heads": 3,
    "depth": 2,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class TestWorkedExample:
    def test_a_60x100_image_gives_15_patches_of_400_values(self):
        patches = Patch_Tokenization((1, 60, 100), patch_size=20, token_len=768)
        image = torch.rand(13, 1, 60, 100)
        assert patches.num_tokens == 15
        assert isinstance(patches.num_tokens, int)
        assert patches.split(image).transpose(1, 2).shape == (13, 15, 400)
        assert patches(image).shape == (13, 15, 768)

    def test_the_class_token_makes_175_tokens_176(self):
        backbone = ViT_Backbone(num_tokens=175, num_heads=4, Encoding_hidden_chan_mul=1.5, depth=1)
        seen = []
        backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
        assert backbone(torch.rand(13, 175, 768)).shape == (13, 1)
        assert seen == [(13, 176, 768)]

    def test_an_encoding_with_4_heads_and_multiplier_1_5_keeps_the_shape(self):
        encoding = Encoding(dim=768, num_heads=4, hidden_chan_mul=1.5)
        assert encoding.neuralnet.fc1.out_features == 1152
        assert encoding.attn.head_dim == 192
        assert encoding(torch.rand(2, 176, 768)).shape == (2, 176, 768)

    def test_one_number_out(self):
        model = ViT_Model((1, 60, 100), patch_size=20, depth=2)
        assert model(torch.rand(3, 1, 60, 100)).shape == (3, 1)

    def test_a_token_transformer_changes_the_token_length(self):
        transformer = TokenTransformer(dim=49, chan=64, num_heads=4, hidden_chan_mul=1.5)
        assert transformer(torch.rand(13, 21, 49)).shape == (13, 21, 64)


class TestFormulas:
    def test_patches_run_row_by_row_and_inside_channel_row_column(self):
        channels, height, width, side = 3, 8, 12, 4
        patches = Patch_Tokenization((channels, height, width), side, token_len=5).double()
        image = torch.rand(2, channels, height, width, dtype=torch.float64)
        tokens = [
            [
                image[b, c, top + row, left + column]
                for c in range(channels)
                for row in range(side)
                for column in range(side)
            ]
            for b in range(2)
            for top in range(0, height, side)
            for left in range(0, width, side)
        ]
        flat = torch.tensor(tokens, dtype=torch.float64).reshape(2, 6, channels * side * side)
        torch.testing.assert_close(patches(image), flat @ patches.project.weight.T + patches.project.bias)

    @pytest.mark.parametrize(("num_tokens", "token_len"), [(176, 768), (5, 7), (1, 1)])
    def test_sinusoid_table(self, num_tokens, token_len):
        table = get_sinusoid_encoding(num_tokens, token_len)
        assert table.shape == (1, num_tokens, token_len)
        assert table.dtype == torch.float32
        for i in range(0, num_tokens, 7):
            for j in range(token_len):
                angle = i / 10000 ** (2 * (j // 2) / token_len)
                expected = np.float32(math.cos(angle) if j % 2 else math.sin(angle))
                assert table[0, i, j].item() == pytest.approx(expected, rel=FLOAT32_EPS, abs=FLOAT64_ROUNDING)

    @pytest.mark.parametrize("qk_scale", [None, 0.3])
    @pytest.mark.parametrize(("dim", "chan"), [(6, 6), (5, 12)])
    def test_attention_head_by_head_plus_its_values(self, dim, chan, qk_scale):
        heads = 3
        attention = Attention(dim, chan, num_heads=heads, qkv_bias=True, qk_scale=qk_scale).double()
        x = torch.randn(4, dim, dtype=torch.float64)
        q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(chan, dim=-1)
        size = chan // heads
        merged = torch.zeros(4, chan, dtype=torch.float64)
        for head in range(heads):
            columns = slice(head * size, (head + 1) * size)
            for query in range(4):
                scores = torch.stack([q[query, columns] @ k[key, columns] for key in range(4)])
                exponentials = torch.exp(scores * (qk_scale or size**-0.5))
                merged[query, columns] = (exponentials / exponentials.sum()) @ v[:, columns]
        expected = merged @ attention.proj.weight.T + attention.proj.bias + v
        torch.testing.assert_close(attention(x[None])[0], expected)

    def test_neural_net_none_means_the_input_width(self):
        net = NeuralNet(7)
        assert (net.fc1.out_features, net.fc2.out_features) == (7, 7)
        net = NeuralNet(7, hidden_chan=9, out_chan=4, act_layer=nn.ReLU)
        x = torch.randn(2, 3, 7)
        torch.testing.assert_close(net(x), net.fc2(torch.clamp(net.fc1(x), min=0)))

    def test_encoding_is_two_residual_steps(self):
        encoding = Encoding(12, num_heads=2, norm_layer=nn.RMSNorm)
        x = torch.randn(2, 5, 12)
        middle = x + encoding.attn(encoding.norm1(x))
        torch.testing.assert_close(encoding(x), middle + encoding.neuralnet(encoding.norm2(middle)))

    def test_token_transformer_has_no_skip_around_its_attention(self):
        transformer = TokenTransformer(12, 12, num_heads=2)
        x = torch.randn(2, 5, 12)
        middle = transformer.attn(transformer.norm1(x))
        torch.testing.assert_close(transformer(x), middle + transformer.neuralnet(transformer.norm2(middle)))

    def test_backbone_adds_positions_to_class_token_and_tokens_and_predicts_from_the_class_token(self):
        backbone = ViT_Backbone(preds=3, token_len=8, num_tokens=4, depth=0)
        tokens = torch.randn(2, 4, 8)
        class_token = backbone.cls_token[0, 0] + get_sinusoid_encoding(5, 8)[0, 0]
        expected = backbone.head(backbone.norm(class_token)).expand(2, 3)
        torch.testing.assert_close(backbone(tokens), expected)
        seen = []
        backbone.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        backbone(tokens)
        torch.testing.assert_close(seen[0][:, 1:], tokens + get_sinusoid_encoding(5, 8)[:, 1:])


class TestTokensToToken:
    @pytest.mark.parametrize("kernels", [(31, 3, 3), (7, 3, 3), (7, 5, 3)])
    @pytest.mark.parametrize("size", [(170, 50), (61, 100)])
    def test_non_square_images(self, kernels, size):
        module = Tokens2Token((2, *size), kernels, num_heads=2, token_chan=8, token_len=16)
        rows, columns = size
        for kernel in kernels:
            positions = [
                range(-((kernel + 1) // 4), side + (kernel + 1) // 4 - kernel + 1, (kernel + 1) // 2)
                for side in (rows, columns)
            ]
            rows, columns = len(positions[0]), len(positions[1])
        assert module.num_tokens == rows * columns
        assert isinstance(module.num_tokens, int)
        assert module(torch.rand(2, 2, *size)).shape == (2, rows * columns, 16)

    def test_tokens_are_laid_back_row_by_row(self):
        # Kernel 1 everywhere makes each token one pixel, so the module must treat pixels alike wherever they stand.
        module = Tokens2Token((3, 4, 6), (1, 1, 1), token_chan=8, token_len=5).double()
        image = torch.rand(1, 3, 4, 6, dtype=torch.float64)
        pixels = image[0].reshape(3, 24).T[None]
        expected = module.project(module.transformer2(module.transformer1(pixels)))
        torch.testing.assert_close(module(image), expected)

    def test_second_split_sees_neighbours_in_the_image(self):
        module = Tokens2Token((1, 5, 9), (1, 3, 1), token_chan=4, token_len=5).double()
        seen = []
        module.transformer2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        image = torch.rand(1, 1, 5, 9, dtype=torch.float64)
        module(image)
        first = module.transformer1(image.reshape(1, 45, 1))[0].reshape(5, 9, 4)
        padded = nn.functional.pad(first, (0, 0, 1, 1, 1, 1))
        windows = [
            padded[row : row + 3, column : column + 3].permute(2, 0, 1).reshape(36)
            for row in range(0, 5, 2)
            for column in range(0, 9, 2)
        ]
        torch.testing.assert_close(seen[0][0], torch.stack(windows))

    def test_both_halves_get_the_arguments_and_each_its_own_multiplier(self):
        model = T2T_ViT(
            **SMALL_T2T,
            T2T_hidden_chan_mul=2.0,
            Encoding_hidden_chan_mul=3.0,
            qkv_bias=True,
            qk_scale=0.25,
            act_layer=nn.SiLU,
            norm_layer=nn.RMSNorm,
        )
        tokeniser, backbone = model.tokens_to_token, model.vit_backbone
        for block, hidden in [(tokeniser.transformer1, 24), (tokeniser.transformer2, 24), (backbone.blocks[1], 72)]:
            assert block.attn.num_heads == 3
            assert block.attn.scale == 0.25
            assert block.attn.qkv.bias is not None
            assert block.neuralnet.fc1.out_features == hidden
            assert isinstance(block.neuralnet.act, nn.SiLU)
            assert isinstance(block.norm1, nn.RMSNorm)
        assert isinstance(backbone.norm, nn.RMSNorm)
        assert model(torch.rand(2, 2, 40, 28)).shape == (2, 5)


def block_keys(prefix, qkv_bias=False, norm_bias=True):
    names = ["attn.qkv.weight", "norm1.weight", "norm2.weight"] + ["attn.qkv.bias"] * qkv_bias
    names += [
        f"{layer}.{kind}" for layer in ("attn.proj", "neuralnet.fc1", "neuralnet.fc2") for kind in ("weight", "bias")
    ]
    names += ["norm1.bias", "norm2.bias"] * norm_bias
    return {f"{prefix}.{name}" for name in names}


class TestStateDict:
    @pytest.mark.parametrize("qkv_bias", [False, True])
    @pytest.mark.parametrize("norm_layer", [nn.LayerNorm, nn.RMSNorm])
    def test_vit_keys(self, qkv_bias, norm_layer):
        norm_bias = norm_layer is nn.LayerNorm
        model = ViT_Model(**SMALL, qkv_bias=qkv_bias, norm_layer=norm_layer)
        expected = {"patch_tokens.project.weight", "patch_tokens.project.bias"}
        expected |= {
            f"backbone.{name}" for name in ("cls_token", "pos_embed", "norm.weight", "head.weight", "head.bias")
        }
        expected |= {"backbone.norm.bias"} if norm_bias else set()
        for i in range(2):
            expected |= block_keys(f"backbone.blocks.{i}", qkv_bias, norm_bias)
        assert set(model.state_dict()) == expected

    def test_t2t_keys(self):
        expected = {"tokens_to_token.project.weight", "tokens_to_token.project.bias"}
        names = ("cls_token", "pos_embed", "norm.weight", "norm.bias", "head.weight", "head.bias")
        expected |= {f"vit_backbone.{name}" for name in names}
        for block in ("tokens_to_token.transformer1", "tokens_to_token.transformer2", "vit_backbone.blocks.0"):
            expected |= block_keys(block)
        assert set(T2T_ViT(**{**SMALL_T2T, "depth": 1}).state_dict()) == expected

    def test_the_position_table_is_stored_but_not_trained(self):
        backbone = ViT_Model(**SMALL).backbone
        assert not backbone.pos_embed.requires_grad
        assert torch.equal(backbone.pos_embed, get_sinusoid_encoding(7, 24))

    @pytest.mark.parametrize("model", [ViT_Model(**SMALL), T2T_ViT(**SMALL_T2T)])
    def test_no_weight_decay(self, model):
        assert model.no_weight_decay() == {"cls_token"}


class TestInitialisation:
    @pytest.mark.parametrize("norm_layer", [nn.LayerNorm, nn.RMSNorm])
    def test_statistics(self, norm_layer):
        model = ViT_Model((1, 16, 16), patch_size=8, num_heads=2, depth=1, qkv_bias=True, norm_layer=norm_layer)
        for name, parameter in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                assert (parameter == 1).all(), name
            elif name.endswith("bias"):
                assert (parameter == 0).all(), name
            elif not name.endswith("pos_embed"):
                spread = 0.02 / math.sqrt(2 * parameter.numel())
                assert parameter.std().item() == pytest.approx(0.02, abs=5 * spread), name
                assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
        # The bounds are absolute, so values beyond two standard deviations occur as often as in a normal.
        beyond = (model.state_dict()["backbone.blocks.0.attn.qkv.weight"].abs() > 0.04).double().mean().item()
        assert beyond == pytest.approx(0.0455, abs=0.002)

    def test_t2t_is_initialised_alike(self):
        model = T2T_ViT((1, 60, 40), token_len=128, depth=1)
        tensors = model.state_dict()
        for block in ("tokens_to_token.transformer1", "vit_backbone.blocks.0"):
            assert tensors[f"{block}.attn.qkv.weight"].std().item() == pytest.approx(0.02, rel=0.03)
        assert (tensors["tokens_to_token.project.bias"] == 0).all()


class TestErrors:
    def test_indivisible_height(self):
        with pytest.raises(ValueError, match=r"height 61 .* patch size 20"):
            Patch_Tokenization((1, 61, 100), 20)

    def test_indivisible_width(self):
        with pytest.raises(ValueError, match=r"width 101 .* patch size 20"):
            ViT_Model((1, 60, 101), 20)

    @pytest.mark.parametrize("img_size", [(1, 1, 60, 100), (60, 100), (1, 0, 100)])
    def test_image_size(self, img_size):
        with pytest.raises(ValueError, match="channels, height, width"):
            Patch_Tokenization(img_size, 20)

    @pytest.mark.parametrize(
        "build", [lambda: Attention(10, 10, 3), lambda: TokenTransformer(7, 10, 3), lambda: Encoding(10, 3)]
    )
    def test_heads(self, build):
        with pytest.raises(ValueError, match="10 is not divisible by 3 heads"):
            build()

    @pytest.mark.parametrize("hidden_chan", [96.0, 1.5, 0])
    def test_hidden_width(self, hidden_chan):
        with pytest.raises(ValueError, match=str(hidden_chan)):
            NeuralNet(8, hidden_chan=hidden_chan)

    @pytest.mark.parametrize("shape", [(2, 1, 8, 12), (2, 3, 12, 8), (3, 8, 12)])
    def test_image_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(batch, 3, 8, 12\), got \(\d"):
            ViT_Model(**SMALL)(torch.zeros(shape))

    def test_image_shape_t2t(self):
        with pytest.raises(ValueError, match=r"\(batch, 2, 40, 28\), got \(1, 2, 28, 40\)"):
            T2T_ViT(**SMALL_T2T)(torch.zeros(1, 2, 28, 40))

    @pytest.mark.parametrize("shape", [(2, 5, 8), (2, 4, 7), (4, 8)])
    def test_token_shape(self, shape):
        with pytest.raises(ValueError, match=r"\(batch, 4, 8\), got \(\d"):
            ViT_Backbone(token_len=8, num_tokens=4, depth=1)(torch.zeros(shape))

    def test_empty_soft_split(self):
        with pytest.raises(ValueError, match=r"kernel 31 .* 40x10"):
            Tokens2Token((1, 40, 10), (31, 3, 3))


class TestDtypes:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize(("model_class", "arguments"), [(ViT_Model, SMALL), (T2T_ViT, SMALL_T2T)])
    @pytest.mark.parametrize("norm_layer", [nn.LayerNorm, nn.RMSNorm])
    def test_forward_and_backward(self, model_class, arguments, dtype, norm_layer):
        model = model_class(**arguments, norm_layer=norm_layer).to(dtype)
        output = model(torch.rand(2, *arguments["img_size"], dtype=dtype))
        assert output.dtype == dtype
        assert output.shape == (2, 5)
        output.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is None) == name.endswith("pos_embed"), name


class TestDigits:
    def test_images(self):
        images, labels = digits_images()
        assert images.shape == (1797, 1, 8, 8)
        assert images.dtype == torch.float32
        assert (images.min(), images.max()) == (0, 1)
        assert labels.unique().tolist() == list(range(10))

    def test_split(self):
        train, held_out = digits_split(0)
        assert (len(train), len(held_out)) == (1438, 359)
        assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(1797))

    def test_the_shipped_model_reaches_the_accuracy_its_config_states(self):
        model = load_digits_reference()
        assert not model.training
        config = json.loads((Path(digits.__file__).parent / CONFIG_NAME).read_text(encoding="utf-8"))
        images, labels = digits_images()
        _, held_out = digits_split(config["split_seed"])
        with torch.no_grad():
            correct = (model(images[held_out]).argmax(-1) == labels[held_out]).double().mean().item()
        # Another machine's rounding may move one image across a boundary.
        assert correct == pytest.approx(config["held_out_accuracy"], abs=1.5 / len(held_out))
        assert config["held_out_accuracy"] >= 0.98
        assert tuple(train_digits.CONSTRUCTOR_ARGUMENTS) == CONSTRUCTOR_NAMES
        assert {name: config[name] for name in CONSTRUCTOR_NAMES} == json.loads(
            json.dumps(train_digits.CONSTRUCTOR_ARGUMENTS)
        )

    def test_training_twice_gives_the_same_weights(self, monkeypatch):
        monkeypatch.setattr(train_digits, "EPOCHS", 1)
        first, second = (train_digits.train()[0].state_dict() for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_without_scikit_learn_the_error_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sklearn", None)
        monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
        with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
            digits_images()
