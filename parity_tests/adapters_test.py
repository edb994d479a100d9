"""LoRA adapters against peft, and folders of torch.distributed.checkpoint against torch."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.peers import import_timm, import_transformers
from vit_flax.convert import ConversionError, read_checkpoint
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LIBRARIES, FLOAT32_SEEN

transformers = import_transformers()
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft")

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 8,
    "patch_size": 4, "num_labels": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).save_pretrained(folder)
    return folder


def adapted(base, folder, **config):
    """Saves an adapter with random weights, and returns the adapted model's output for an image."""
    torch.manual_seed(1)
    model = transformers.ViTForImageClassification.from_pretrained(base)
    config = {"r": 4, "init_lora_weights": False, "target_modules": ["q_proj", "v_proj"], **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(**config))
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("classifier" in name or "bias" in name):
                torch.nn.init.normal_(parameter)
        model.save_pretrained(folder)
    with torch.no_grad():
        return model.eval()(image()).logits.numpy()


def image() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32))


def ours(path):
    model, params = vit_flax.load(path)
    return np.asarray(model.apply({"params": params}, image().numpy().transpose(0, 2, 3, 1)))


@pytest.mark.filterwarnings("ignore")
class TestLora:
    @pytest.mark.parametrize(
        "config",
        [
            {"modules_to_save": ["classifier"], "lora_alpha": 16},
            {"target_modules": "all-linear", "use_rslora": True, "lora_alpha": 5, "bias": "all"},
            {"target_modules": ["q_proj", "projection"], "rank_pattern": {"layers.0.attention.q_proj": 2},
             "alpha_pattern": {"q_proj": 3}, "bias": "lora_only"},
        ],
    )  # fmt: skip
    def test_is_merged_as_peft_merges(self, tmp_path, base, config):
        expected = adapted(base, tmp_path, **config)
        assert np.abs(expected - ours(base)).max() > 10 * FLOAT32_SEEN
        np.testing.assert_allclose(ours(tmp_path), expected, **FLOAT32_LIBRARIES)
        assert "applied the LoRA adapter" in read_checkpoint(tmp_path).notes[0]

    def test_beside_its_base_it_is_applied_as_transformers_does(self, tmp_path, base):
        expected = adapted(base, tmp_path / "adapter")
        for file in base.iterdir():
            shutil.copy(file, tmp_path / "adapter" / file.name)
        owner = transformers.ViTForImageClassification.from_pretrained(tmp_path / "adapter").eval()
        with torch.no_grad():
            np.testing.assert_allclose(owner(image()).logits.numpy(), expected, atol=FLOAT32_ABSOLUTE)
        np.testing.assert_allclose(ours(tmp_path / "adapter"), expected, **FLOAT32_LIBRARIES)

    def test_a_base_that_is_not_there_and_the_advice(self, tmp_path, base):
        expected = adapted(base, tmp_path / "adapter")
        file = tmp_path / "adapter" / "adapter_config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps({**config, "base_model_name_or_path": "nowhere"}))
        with pytest.raises(ConversionError, match=r"LoRA adapter of nowhere.*put the base's config.json and weights"):
            read_checkpoint(tmp_path / "adapter")
        file.write_text(json.dumps({**config, "base_model_name_or_path": "."}))
        with pytest.raises(ConversionError, match="it is an adapter itself"):
            read_checkpoint(tmp_path / "adapter")
        shutil.copytree(base, tmp_path / "adapter" / "base")
        file.write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
        np.testing.assert_allclose(ours(tmp_path / "adapter"), expected, **FLOAT32_LIBRARIES)
        file.write_text(json.dumps({**config, "base_model_name_or_path": None}))
        for path in base.iterdir():
            shutil.copy(path, tmp_path / "adapter" / path.name)
        np.testing.assert_allclose(ours(tmp_path / "adapter"), expected, **FLOAT32_LIBRARIES)

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            ({"use_dora": True}, "use_dora=True"),
            ({"peft_type": "IA3"}, "type IA3"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
            ({"use_magic": 3}, "use_magic=3"),
            ({"alpha_pattern": {"(a+)+$": 1}}, "alpha_pattern"),
            ({"lora_alpha": "8"}, "an alpha of 8"),
        ],
    )
    def test_other_adapters_are_refused_by_name(self, tmp_path, base, change, fault):
        adapted(base, tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        with pytest.raises(ConversionError, match=fault) as error:
            read_checkpoint(tmp_path)
        assert "merge_and_unload" in str(error.value)

    def test_adapters_that_stand_in_the_weights_unmerged(self, tmp_path, base):
        adapted(base, tmp_path / "adapter")
        model = peft.PeftModel.from_pretrained(
            transformers.ViTForImageClassification.from_pretrained(base), tmp_path / "adapter"
        )
        shutil.copy(base / "config.json", tmp_path)
        for tensors in (model.state_dict(), model.base_model.model.state_dict()):
            torch.save(tensors, tmp_path / "pytorch_model.bin")
            with pytest.raises(ConversionError, match=r"beside adapters \(LoRA\) that are not merged"):
                ours(tmp_path)
        torch.save(model.merge_and_unload().state_dict(), tmp_path / "pytorch_model.bin")
        np.testing.assert_allclose(ours(tmp_path), ours(tmp_path / "adapter"), **FLOAT32_LIBRARIES)

    def test_an_adapter_of_another_model(self, tmp_path, base):
        adapted(base, tmp_path / "adapter")
        other = transformers.ViTForImageClassification(transformers.ViTConfig(**{**SIZES, "hidden_size": 8}))
        other.save_pretrained(tmp_path / "adapter")
        with pytest.raises(ConversionError, match="does not fit"):
            read_checkpoint(tmp_path / "adapter")

    def test_timms_models(self, tmp_path):
        timm = import_timm()
        sizes = {"depth": 1, "embed_dim": 16, "num_heads": 2, "img_size": 8, "patch_size": 4, "num_classes": 3}
        model = timm.create_model("vit_tiny_patch16_224", **sizes)
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        config = peft.LoraConfig(r=4, init_lora_weights=False, target_modules=["qkv", "patch_embed.proj"],
                                 modules_to_save=["head"])  # fmt: skip
        model = peft.get_peft_model(model, config).eval()
        model.save_pretrained(tmp_path)
        told = {"num_heads": 2, "image_size": 8, "norm_eps": 1e-6, "activation": "gelu", "global_pool": "token"}
        flax, params = vit_flax.load(tmp_path, **told)
        found = flax.apply({"params": params}, image().numpy().transpose(0, 2, 3, 1))
        with torch.no_grad():
            np.testing.assert_allclose(np.asarray(found), model(image()).numpy(), **FLOAT32_LIBRARIES)


@pytest.mark.filterwarnings("ignore")
class TestDistributed:
    @pytest.fixture
    def saved(self, tmp_path):
        from torch.distributed.checkpoint.state_dict_saver import save

        state = {"model": {"a.weight": torch.randn(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}, "step": 3}
        save(state, checkpoint_id=tmp_path / "pytorch_model_fsdp_0", no_dist=True)
        return state["model"]

    def test_tensors_are_read(self, tmp_path, saved):
        for folder in (tmp_path / "pytorch_model_fsdp_0", tmp_path):
            checkpoint = read_checkpoint(folder)
            assert checkpoint.shapes == {"model.a.weight": (3, 4), "model.b": (2,)}
            np.testing.assert_array_equal(checkpoint.read("model.a.weight"), saved["a.weight"].numpy())
            assert checkpoint.read("model.b").dtype.name == "bfloat16"
            assert checkpoint.skipped == {"step": "bytes"}

    def test_a_model_of_transformers(self, tmp_path, base):
        from torch.distributed.checkpoint.state_dict_saver import save

        model = transformers.ViTForImageClassification.from_pretrained(base).eval()
        save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
        shutil.copy(base / "config.json", tmp_path)
        with torch.no_grad():
            np.testing.assert_allclose(ours(tmp_path), model(image()).logits.numpy(), **FLOAT32_LIBRARIES)

    def test_hostile_tables_run_nothing(self, tmp_path, saved):
        import os

        class Call:
            def __reduce__(self):
                return os.system, (f"touch {tmp_path / 'victim'}",)

        folder = tmp_path / "pytorch_model_fsdp_0"
        table = pickle.loads((folder / ".metadata").read_bytes())
        hostile = [pickle.dumps(Call(), protocol) for protocol in range(6)]
        table.planner_data = Call()
        hostile += [pickle.dumps(table), b"\x80\x02ctorch\nhub\n.", b"\x80\x02ctorch\nload\n.", b"", b"\x80\x04"]
        hostile += [b"\x80\x04\x8c\x05torch\x8c\x0efloat32.typing\x93.", pickle.dumps({"a": 1})]
        for odd in ({"a": 1}, [1], None):
            table.planner_data, table.state_dict_metadata = None, odd
            hostile.append(pickle.dumps(table))
        for data in hostile:
            (folder / ".metadata").write_bytes(data)
            with pytest.raises(ConversionError) as error:
                read_checkpoint(folder)
            assert len(str(error.value).splitlines()) == 1
        assert not (tmp_path / "victim").exists()

    def test_files_elsewhere_and_damaged_ones(self, tmp_path, saved):
        folder = tmp_path / "pytorch_model_fsdp_0"
        data = (folder / "__0_0.distcp").read_bytes()
        (folder / "__0_0.distcp").write_bytes(data[: len(data) // 2])
        with pytest.raises(ConversionError):
            read_checkpoint(folder).read("model.b")
        (folder / "__0_0.distcp").unlink()
        with pytest.raises(ConversionError, match=r"names the file __0_0\.distcp, which is not there"):
            read_checkpoint(folder)
