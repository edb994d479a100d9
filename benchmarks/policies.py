"""Training with activations stored as on a CPU and as on a TPU or GPU: `python -m benchmarks.policies`.

A recipe is trained in bfloat16, here, once under each policy, with the same seeds and batches:

    python -m benchmarks.policies                                         # 200 steps on scikit-learn's digits
    python -m benchmarks.policies --recipe fashion_mnist --folder DIR --epochs 1

The loss curves of both are drawn in one figure, and the final scores are compared, as medians where there are several
seeds. Writes benchmarks/results/policies-RECIPE.json and .png.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.results import RESULTS, write

# activations between layers are float32 on a CPU, and bfloat16 elsewhere: see vit_flax.models.precision
POLICIES = {"float32 stored, as on a CPU": "cpu", "bfloat16 stored, as on a GPU": "gpu"}


def train(config: Any, platform: str) -> dict[str, Any]:
    """Returns the losses of a run by step and its last score, the model traced as for that platform."""
    from vit_flax.models.precision import compiled_for
    from vit_flax.train import compilation
    from vit_flax.train.loop import Run

    with tempfile.TemporaryDirectory() as folder:
        run = Run(config.replace(out=f"{folder}/run"), quiet=True)
        with mock.patch.object(compilation, "_target", lambda mesh: compiled_for(platform, mesh.size)):
            result = run.run()
        rows = [json.loads(line) for line in (Path(folder) / "run" / "log.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "learning_rate" in row}
    return {"losses": losses, "scores": result.scores}


def draw(found: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Draws the losses of the first seed under each policy."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    for name, runs in found.items():
        losses = runs[0]["losses"]
        axes.plot(list(losses), list(losses.values()), label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    """Trains under each policy and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="digits", choices=("digits", "fashion_mnist", "fashion_mnist_t2t"))
    parser.add_argument("--folder", help="of Fashion-MNIST's four files")
    parser.add_argument("--steps", type=int, help="200 unless --epochs is given")
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    import jax

    jax.config.update("jax_platforms", "cpu")
    from vit_flax.recipes import RECIPES

    make = RECIPES[options.recipe]
    config = make() if options.recipe == "digits" else make(options.folder)
    steps = options.steps or (None if options.epochs else 200)
    length = {"epochs": options.epochs, "steps": None} if steps is None else {"epochs": None, "steps": steps}
    every = max(1, min(config.log_every, (steps or 99) // 20))
    config = config.replace({**length, "precision": "bf16", "log_every": every})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in POLICIES}
    for seed in range(options.seeds):
        for name, platform in POLICIES.items():
            found[name].append(train(config.replace(seed=seed), platform))
            print(f"seed {seed}, {name}: {found[name][-1]['scores']}", flush=True)
    medians = {name: statistics.median(run["scores"]["accuracy"] for run in runs) for name, runs in found.items()}
    path = RESULTS / f"policies-{options.recipe}.json"
    write(path, f"policies-{options.recipe}", length=length, seeds=options.seeds, accuracy=medians, runs=found)
    draw(found, f"{options.recipe}, bfloat16", path.with_suffix(".png"))
    print(json.dumps(medians))


if __name__ == "__main__":
    main()
