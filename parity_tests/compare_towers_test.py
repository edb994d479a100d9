"""`vit-flax compare` of two towers against transformers: it must agree, and be able to fail."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from parity_tests.peers import import_transformers
from vit_flax.cli.compare import RANDOM, TRUNKS
from vit_flax.cli.main import main
from vit_flax.parity.stage_mutations import STAGE_MUTATIONS
from vit_flax.parity.tower_mutations import TOWER_MUTATIONS
from vit_flax.parity.towers import OUTPUTS, small_towers
from vit_flax.parity.window_mutations import WINDOW_MUTATIONS

transformers = import_transformers()
QUICK = ("text_not_causal", "rotation_not_stretched", "queries_averaged")
SMALL_MUTATIONS = {**TOWER_MUTATIONS, **WINDOW_MUTATIONS, **STAGE_MUTATIONS}


@pytest.mark.parametrize(
    "case", ["siglip2", "clip", *(pytest.param(case, marks=pytest.mark.slow) for case in ("metaclip_2", "siglip"))]
)
def test_a_folder_agrees_with_transformers_and_can_differ(case, tmp_path, capsys):
    small_towers(case).float().save_pretrained(tmp_path)
    assert main(["compare", str(tmp_path), "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = [row["name"] for row in report["sections"]["components"]]
    for tower in ("vision_model", "text_model"):
        assert sum(name.startswith(f"{tower}.encoder.layers.1.") for name in rows) == 8
    assert [row["name"] for row in report["sections"]["outputs"]] == list(OUTPUTS)
    assert all(check["agrees"] for check in report["checks"])
    kept = [check["text"] for check in report["checks"][1:]]
    assert kept == ["Siglip2VisionEmbeddings of transformers cast to float32: left in float64 for this comparison"] * (
        case == "siglip2"
    )
    if case == "clip":
        assert main(["compare", str(tmp_path), "--set", "text_norm_eps=1e-3"]) == 1
        out = capsys.readouterr().out
        assert "First diverging component: text_model.encoder.layers.0.layer_norm1 (components)." in out
        assert "against transformers' CLIPModel" in out
        assert main(["compare", str(tmp_path), "--tower", "image"]) == 0
        assert "against transformers' CLIPVisionModelWithProjection" in capsys.readouterr().out


@pytest.mark.slow
def test_a_naflex_image_tower_agrees_with_transformers(tmp_path, capsys):
    kind = transformers.Siglip2VisionModel
    both: Any = small_towers("siglip2")
    module = both.vision_model.float()
    assert isinstance(module, kind)
    module.save_pretrained(tmp_path)
    assert main(["compare", str(tmp_path)]) == 0
    assert "against transformers' Siglip2VisionModel" in capsys.readouterr().out
    assert main(["compare", str(tmp_path), "--set", "activation=gelu"]) == 1


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SMALL_MUTATIONS]
)
def test_a_mutation_exits_with_1_and_its_component(name, capsys):
    mutation = SMALL_MUTATIONS[name]
    assert main(["compare", "--mutate", name]) == 1
    out = capsys.readouterr().out
    first = re.fullmatch(r"The models differ\. First diverging component: (\S+) \((\w+)\)\.", out.splitlines()[-1])
    assert first is not None, out
    assert first.groups() == (mutation.first, mutation.section)
    assert f"mutation applied: {name}" in out


@pytest.mark.slow
@pytest.mark.parametrize("case", RANDOM)
def test_nothing_differs_without_a_mutation(case, capsys):
    assert main(["compare", "--random", case]) == 0
    out = capsys.readouterr().out
    assert "The two models are the same" in out
    assert case not in TRUNKS or "features  " in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--random", "clip", "--mutate", "logit_bias"], "--mutate logit_bias applies to --random siglip, got clip"),
        (["--random", "clip", "--mutate", "gelu_tanh"], "gelu_tanh applies to the digits ViT: leave --random out"),
        (["--random", "clip", "--steps", "3"], "--steps applies to the digits ViT, not to small models"),
        (["--tower", "image"], "--tower needs a checkpoint"),
        (["somewhere", "--random", "clip"], "--random applies to the comparison without a checkpoint"),
    ],
)
def test_what_does_not_go_together_is_told(arguments, said, capsys):
    assert main(["compare", *arguments]) == 2
    assert said in capsys.readouterr().err
