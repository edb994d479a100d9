import json
from types import SimpleNamespace

import numpy as np
import pytest

from vit_flax.convert import ConversionError, folder, read_checkpoint, write_checkpoint


def refused(path) -> str:
    with pytest.raises(ConversionError) as error:
        read_checkpoint(path)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.fixture
def sharded(tmp_path):
    write_checkpoint(tmp_path / "model-1.safetensors", {"a": np.ones(2), "b": np.zeros(3)}, {})
    write_checkpoint(tmp_path / "model-2.safetensors", {"c": np.full((2, 2), 7.0)}, {})
    weight_map = {"a": "model-1.safetensors", "b": "model-1.safetensors", "c": "model-2.safetensors"}

    def write(**changes):
        index = {"metadata": {"total_size": 9}, "weight_map": {**weight_map, **changes}}
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file is not None}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        return tmp_path

    return write


class TestShards:
    def test_are_read_as_one(self, sharded):
        path = sharded()
        (path / "config.json").write_text('{"model_type": "vit"}')
        checkpoint = read_checkpoint(path)
        assert checkpoint.shapes == {"a": (2,), "b": (3,), "c": (2, 2)}
        assert checkpoint.config == {"model_type": "vit"}
        np.testing.assert_array_equal(checkpoint.read("c"), np.full((2, 2), 7.0))
        assert read_checkpoint(path / "model.safetensors.index.json").shapes == checkpoint.shapes

    @pytest.mark.parametrize(
        "file",
        ["../model-2.safetensors", "/etc/passwd", "sub/x", "..", ".", "", "..\\x", "C:\\x", "a\0b", 3, None, ["x"], {}],
    )
    def test_elsewhere_are_refused(self, sharded, file):
        path = sharded()
        index = json.loads((path / "model.safetensors.index.json").read_text())
        index["weight_map"]["c"] = file
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "no file of this folder" in refused(path)

    def test_each_tensor_is_in_just_the_one_it_is_said_to_be_in(self, sharded):
        assert "names model-3.safetensors, which is not there" in refused(sharded(c="model-3.safetensors"))
        assert "c is not in model-1.safetensors" in refused(sharded(c="model-1.safetensors"))
        assert "d is not in model-2.safetensors" in refused(sharded(d="model-2.safetensors"))
        assert "b is in model-1.safetensors, said to be in none" in refused(sharded(b=None))
        path = sharded()
        write_checkpoint(path / "model-2.safetensors", {"c": np.ones(2), "a": np.ones(2)}, {})
        assert "a is in model-2.safetensors, said to be in model-1.safetensors" in refused(path)

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "[" * 300_000, "\xff"])
    def test_a_broken_index_is_refused(self, sharded, text):
        path = sharded()
        (path / "model.safetensors.index.json").write_text(text, "latin-1")
        refused(path)

    def test_an_index_that_names_itself_or_very_many(self, sharded):
        path = sharded(c="model.safetensors.index.json")
        refused(path)
        path = sharded(**{str(i): f"{i}.safetensors" for i in range(2000)})
        assert "more than 1000" in refused(path)


class TestFolder:
    def test_the_order_of_names(self, tmp_path):
        write_checkpoint(tmp_path / "x.npz", {"x": np.ones(1)}, {})
        assert list(read_checkpoint(tmp_path).shapes) == ["x"]
        write_checkpoint(tmp_path / "pytorch_model.bin.npz", {"y": np.ones(1)}, {})
        assert "several weights files, name one of them: pytorch_model.bin.npz, x.npz" in refused(tmp_path)
        (tmp_path / "pytorch_model.bin.npz").rename(tmp_path / "pytorch_model.bin")
        assert list(read_checkpoint(tmp_path).shapes) == ["y"]
        write_checkpoint(tmp_path / "model.safetensors", {"z": np.ones(1)}, {})
        assert list(read_checkpoint(tmp_path).shapes) == ["z"]

    @pytest.mark.parametrize("name", ["last.ckpt", "model_best.pth.tar", "a.pt", "checkpoint.npz"])
    def test_one_file_of_any_suffix_beside_an_optimisers(self, tmp_path, name):
        write_checkpoint(tmp_path / "x.npz", {"x": np.ones(1)}, {})
        (tmp_path / "x.npz").rename(tmp_path / name)
        others = ("optimizer.pt", "scheduler.bin", "training_args.bin", "rng_state.pth", "random_states_0.pkl")
        for other in (*others, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"):
            (tmp_path / other).write_bytes(b"no weights")
        assert list(read_checkpoint(tmp_path).shapes) == ["x"]

    def test_without_weights(self, tmp_path):
        (tmp_path / "config.json").write_text("{}")
        assert "holds no weights (looked for model.safetensors, " in refused(tmp_path)
        (tmp_path / "model.safetensors").mkdir()
        assert "holds no weights" in refused(tmp_path)
        assert "give" not in refused(tmp_path)

    def test_folders_inside_that_hold_some_are_named(self, tmp_path):
        folders = {"checkpoint-9": "model.safetensors", "checkpoint-10": "last.ckpt", "step/0": ".metadata",
                   "logs": "events.out", "lora": "adapter_config.json", "states": "optimizer.bin"}  # fmt: skip
        for name, file in folders.items():
            (tmp_path / name).mkdir(parents=True)
            (tmp_path / name / file).write_bytes(b"")
            if name == "checkpoint-9":
                assert refused(tmp_path).endswith("they lie in checkpoint-9: give that folder")
        said = refused(tmp_path)
        assert said.endswith("; they lie in checkpoint-9, checkpoint-10, lora, step/0: give one of these")
        write_checkpoint(tmp_path / "checkpoint-9" / "model.safetensors", {"x": np.ones(1)}, {})
        assert list(read_checkpoint(tmp_path / "checkpoint-9").shapes) == ["x"]

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 300_000, " " * (17 << 20)])
    def test_a_broken_config_is_refused(self, tmp_path, text):
        write_checkpoint(tmp_path / "a.npz", {"a": np.ones(1)}, {})
        (tmp_path / "config.json").write_text(text)
        assert "config.json: " in refused(tmp_path)


def cached(root, revisions=("0a1b",), main=None):
    """Lays a repository out as the hub's cache does, with links to blobs."""
    home = root / "models--owner--name"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    for revision in revisions:
        snapshot = home / "snapshots" / revision
        snapshot.mkdir(parents=True)
        write_checkpoint(root / "weights.npz", {revision: np.ones(2)}, {})
        (root / "weights.npz").rename(home / "blobs" / revision)
        (snapshot / "model.safetensors").symlink_to(f"../../blobs/{revision}")
    if main:
        (home / "refs" / "main").write_text(main)
    return home


class TestCache:
    def test_a_snapshot_and_the_folder_above(self, tmp_path):
        home = cached(tmp_path)
        assert list(read_checkpoint(home).shapes) == ["0a1b"]
        assert list(read_checkpoint(home / "snapshots" / "0a1b").shapes) == ["0a1b"]

    def test_several_snapshots(self, tmp_path):
        assert "2 snapshots and no refs/main" in refused(cached(tmp_path, ("aa", "bb")))
        (tmp_path / "more").mkdir()
        assert list(read_checkpoint(cached(tmp_path / "more", ("aa", "bb"), "bb")).shapes) == ["bb"]


class TestHub:
    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path, monkeypatch):
        constants = pytest.importorskip("huggingface_hub.constants")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))

    def test_from_the_cache(self, tmp_path):
        home = cached(tmp_path, ("a" * 40, "b" * 40), "a" * 40)
        (home / "snapshots" / ("a" * 40) / "config.json").write_text('{"model_type": "vit"}')
        checkpoint = read_checkpoint("hf://owner/name")
        assert list(checkpoint.shapes) == ["a" * 40]
        assert checkpoint.config == {"model_type": "vit"}
        assert list(read_checkpoint("hf://owner/name@" + "b" * 40).shapes) == ["b" * 40]

    def test_shards_from_the_cache(self, tmp_path):
        home = cached(tmp_path, ("a" * 40,), "a" * 40)
        snapshot = home / "snapshots" / ("a" * 40)
        (snapshot / "model.safetensors").rename(snapshot / "model-1.safetensors")
        index = {"weight_map": {"a" * 40: "model-1.safetensors"}}
        (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
        assert list(read_checkpoint("hf://owner/name").shapes) == ["a" * 40]

    def test_from_the_network(self, tmp_path, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")
        names = ["config.json", "model-1.safetensors", "model.safetensors.index.json"]
        names += ["open_clip_config.json", "preprocessor_config.json", "pytorch_model.bin"]
        write_checkpoint(tmp_path / "model-1.safetensors", {"a": np.ones(2)}, {})
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-1.safetensors"}}')
        (tmp_path / "config.json").write_text('{"model_type": "vit"}')
        info = SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: info)
        fetched = []

        def fetch(repository, name, revision, local_files_only):
            fetched.append((repository, name, revision, local_files_only))
            return str(tmp_path / name)

        monkeypatch.setattr(hub, "hf_hub_download", fetch)
        checkpoint = read_checkpoint("hf://owner/name@main")
        assert list(checkpoint.shapes) == ["a"]
        assert checkpoint.config == {"model_type": "vit"}
        assert sorted(name for _, name, _, _ in fetched) == sorted(names[:-1])
        assert {(repository, *rest) for repository, _, *rest in fetched} == {("owner/name", "abc", False)}

    def test_one_file_by_its_name(self, tmp_path):
        home = cached(tmp_path, ("a" * 40,), "a" * 40)
        snapshot = home / "snapshots" / ("a" * 40)
        write_checkpoint(snapshot / "vit_small.npz", {"small": np.ones(1)}, {})
        write_checkpoint(snapshot / "vit_large.npz", {"large": np.ones(1)}, {})
        (snapshot / "sub").mkdir()
        write_checkpoint(snapshot / "sub" / "x.npz", {"x": np.ones(1)}, {})
        (snapshot / "sub" / "config.json").write_text('{"model_type": "vit"}')
        assert list(read_checkpoint("hf://owner/name/vit_small.npz").shapes) == ["small"]
        assert list(read_checkpoint("hf://owner/name@main/vit_large.npz").shapes) == ["large"]
        assert read_checkpoint("hf://owner/name@" + "a" * 40 + "/sub/x.npz").config == {"model_type": "vit"}
        assert "is not in the local cache" in refused("hf://owner/name/vit_huge.npz")

    def test_the_only_file_of_a_repository(self, tmp_path, monkeypatch):
        home = cached(tmp_path, ("a" * 40,), "a" * 40)
        snapshot = home / "snapshots" / ("a" * 40)
        (snapshot / "model.safetensors").unlink()
        write_checkpoint(snapshot / "dino_vits.npz", {"x": np.ones(1)}, {})
        assert list(read_checkpoint("hf://owner/name").shapes) == ["x"]
        hub = pytest.importorskip("huggingface_hub")
        names = ["a.npz", "b.pth", "optimizer.pt"]
        info = SimpleNamespace(sha="a" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names])
        monkeypatch.setattr(hub.HfApi, "model_info", lambda *_, **__: info)
        monkeypatch.setattr(hub, "hf_hub_download", lambda _, name, **__: str(snapshot / "dino_vits.npz"))
        said = refused("hf://owner/name")
        assert "several weights files, name one: hf://owner/name/a.npz (it has a.npz, b.pth)" in said
        assert list(read_checkpoint("hf://owner/name/a.npz").shapes) == ["x"]
        assert "holds no c.pth; of weights it has a.npz, b.pth" in refused("hf://owner/name/c.pth")

    def test_an_address_without_its_beginning(self, tmp_path):
        assert "did you mean hf://owner/name?" in refused("owner/name")
        assert "hf://" not in refused(tmp_path / "owner" / "name")

    def test_neither_cache_nor_network(self):
        assert "is not in the local cache, and the hub cannot be reached" in refused("hf://owner/other")

    @pytest.mark.parametrize(
        "address", ["hf://", "hf://a", "hf://a/b/c", "hf://a/b@", "hf://a/b/../c.pth", "hf://../../etc", "hf://a b/c"]
    )
    def test_no_address(self, address):
        assert "write hf://owner/name or hf://owner/name@revision" in refused(address)

    def test_without_the_package(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
        assert "pip install 'vit-linen[hub]'" in refused("hf://owner/name")

    def test_the_reasons_are_one_line_each(self):
        class GatedRepoError(Exception):
            pass

        assert "asks for permission" in folder._reason(GatedRepoError("a\nb"))
        assert folder._reason(ValueError("a\nb")) == "the hub refuses it: a b"
