"""Uploads by huggingface_hub to a small server of this test."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import vit_flax
from vit_flax import push_to_hub
from vit_flax.cli.main import main
from vit_flax.convert import ConversionError

pytest.importorskip("huggingface_hub")
Repositories = dict[str, dict[str, bytes]]


class _Hub(BaseHTTPRequestHandler):
    """A server of the requests of create_repo, create_commit, model_info and hf_hub_download, with files in memory."""

    repositories: Repositories
    refuses = False

    def do_POST(self) -> None:
        """Creates a repository, answers how to upload files, takes a commit."""
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.refuses:
            return self._answer({"error": "You do not have the rights to write here"}, 403)
        if self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.repositories.setdefault(name, {})
            return self._answer({"url": f"{self._home()}/{name}"})
        if "/preupload/" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" not in self.path:  # a look at the card's front matter
            return self._answer({"errors": [], "warnings": []})
        name = "/".join(self.path.split("/")[3:5])
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return self._answer({"commitUrl": f"{self._home()}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40})

    def do_GET(self) -> None:
        """Lists a repository, or gives one of its files."""
        parts = self.path.partition("?")[0].split("/")
        if parts[1] == "api":
            name = "/".join(parts[3:5])
            files = [{"rfilename": file} for file in self.repositories.get(name, {})]
            return self._answer({"id": name, "sha": "0" * 40, "siblings": files, "tags": []})
        return self._file("/".join(parts[1:3]), "/".join(parts[5:]))

    do_HEAD = do_GET

    def _file(self, name: str, file: str) -> None:
        content = self.repositories.get(name, {}).get(file)
        if content is None:
            return self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
        self.send_response(200)
        for key, value in {"Content-Length": len(content), "ETag": '"x"', "X-Repo-Commit": "0" * 40}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    def _home(self) -> str:
        return f"http://{self.headers['Host']}"

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        for key, item in (headers or {}).items():
            self.send_header(key, item)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        """Logs nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Hub]]:
    """A hub that huggingface_hub takes for the real one."""
    from huggingface_hub import constants, hf_api

    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"repositories": {}}))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api, "get_token", lambda: "hf_test")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.RequestHandlerClass  # type: ignore[misc]
    server.shutdown()
    server.server_close()
    thread.join()


SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


def _model() -> tuple[Any, Any]:
    model = vit_flax.create_model("vit_tiny_patch16_224", num_classes=3, **SIZES)
    return model, model.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]


def test_a_model_comes_back_from_the_hub_as_it_was(hub: type[_Hub]) -> None:
    model, params = _model()
    names = vit_flax.Preprocessing(image_size=(16, 16), class_names=("ant", "bee", "cat"))
    address = push_to_hub(model, "me/my-vit", params, layout="timm", preprocessing=names, licence="apache-2.0")
    assert address.endswith("/me/my-vit/commit/" + "0" * 40)
    files = hub.repositories["me/my-vit"]
    assert {"model.safetensors", "config.json", "README.md"} <= files.keys()
    card = files["README.md"].decode()
    for told in ('library_name: "timm"', 'license: "apache-2.0"', "hf-hub:me/my-vit", "`ant`, `bee`, `cat`", "16 x 16"):
        assert told in card
    again, loaded = vit_flax.load("hf://me/my-vit")
    assert again.config == model.config
    for mine, other in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(mine, other)


class TestTheCommand:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        """A run's folder: best/, results.json, train.json, and a checkpoint that must not be uploaded."""
        model, params = _model()
        best = tmp_path / "run" / "best"
        best.parent.mkdir()
        vit_flax.save(
            best, model, params, layout="huggingface_vit", preprocessing=vit_flax.Preprocessing(image_size=(16, 16))
        )
        (best / "checkpoints").mkdir()
        (best / "checkpoints" / "state").write_text("large")
        results = {"step": 12, "split": "val", "best": {"accuracy": 0.75}, "images": {"train": 30}, "seconds": 4.2,
                   "per_class": {"ant": 0.5}}  # fmt: skip
        (best.parent / "results.json").write_text(json.dumps(results))
        (best.parent / "train.json").write_text(json.dumps({"init_from": "/home/me/vit.safetensors"}))
        checks = [{"text": "36 of 36 rows", "agrees": True}]
        report = {"agrees": True, "title": "vit", "checks": checks, "sections": {"components": [{}] * 36}}
        (best / "parity.json").write_text(json.dumps(report))
        return best

    def test_uploads_a_runs_weights_with_what_it_reached(
        self, hub: type[_Hub], run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(run), "me/run", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["repository"] == "me/run"
        files = hub.repositories["me/run"]
        assert not [name for name in files if "checkpoints" in name]
        card = files["README.md"].decode()
        for told in ("75.00%", "vit.safetensors", "36 rows compared", "agrees: 36 of 36 rows", 'pipeline("image-class'):
            assert told in card
        assert "/home/me" not in card

    def test_prints_the_card_and_sends_nothing(
        self, hub: type[_Hub], run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(run), "me/run", "--card"]) == 0
        assert capsys.readouterr().out.startswith("---\nlibrary_name")
        assert not hub.repositories

    def test_keeps_a_card_that_is_there(self, hub: type[_Hub], run: Path) -> None:
        (run / "README.md").write_text("mine")
        assert main(["push", str(run), "me/run"]) == 0
        assert hub.repositories["me/run"]["README.md"] == b"mine"

    def test_what_the_hub_refuses_is_one_line(
        self, hub: type[_Hub], run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(hub, "refuses", True)
        assert main(["push", str(run), "me/run"]) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        assert "the hub did not take it" in error

    @pytest.mark.parametrize(
        ("folder", "name", "message"),
        [("best", "no-owner", "owner/name"), ("best/model.safetensors", "me/x", "convert"), ("none", "me/x", "none")],
    )
    def test_unusable_input_is_told_before_anything_is_sent(
        self, hub: type[_Hub], run: Path, folder: str, name: str, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["push", str(run.parent / folder), name]) == 2
        assert message in capsys.readouterr().err
        assert not hub.repositories


def test_a_model_without_parameters_and_a_folder_with_them_are_refused(tmp_path: Path) -> None:
    model, params = _model()
    with pytest.raises(ConversionError, match="with its parameters"):
        push_to_hub(model, "me/x")
    with pytest.raises(ConversionError, match="its own parameters"):
        push_to_hub(tmp_path, "me/x", params)
