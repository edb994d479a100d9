"""Accuracy under two precision policies, and from perturbed initial weights: `python -m benchmarks.policy_seeds`.

The digits recipe is trained in bfloat16 for 200 steps, where accuracy rises fastest, with many seeds: with activations
stored in float32, as on a CPU; the same from weights perturbed by a relative 1e-3; and stored in bfloat16, as on a GPU.
A seed's batches are the same for all. The table has the top-1 accuracy of each, and its difference from the first's,
seed by seed: mean, standard error of the mean, and standard deviation. Writes benchmarks/results/policy_seeds.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.results import RESULTS, write

# (platform, standard deviation of the initial weights' relative perturbation); activations are stored in float32 on a
# CPU, in bfloat16 elsewhere
RUNS = {
    "float32 stored": ("cpu", 0.0),
    "float32 stored, weights a thousandth off": ("cpu", 1e-3),
    "bfloat16 stored": ("gpu", 0.0),
}
MARKS = (100, 150, 200)  # steps


def draw_batches(source: Any, size: int, pixels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns every step's images (steps, B, H, W, C), shifted at random as in the recipe, and labels (steps, B)."""
    from vit_flax.train.data.augment import shift

    rng = np.random.default_rng(seed)
    order = np.concatenate([rng.permutation(len(source))[: len(source) // size * size] for _ in range(MARKS[-1])])
    order = order[: MARKS[-1] * size]
    moves = rng.integers(-pixels, pixels + 1, (len(order), 2)).tolist()
    images = np.stack([shift(source.images[i], *move) for i, move in zip(order, moves, strict=True)])
    return images.reshape(-1, size, *images.shape[1:]), source.labels[order].reshape(-1, size).astype(np.int32)


def train(seeds: int) -> dict[str, list[list[float]]]:
    """Returns the top-1 accuracies of every run: a row for each seed, a column for each of MARKS."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    from vit_flax.models.precision import compiled_for
    from vit_flax.recipes import RECIPES
    from vit_flax.train.data import open_source
    from vit_flax.train.eval_step import eval_step
    from vit_flax.train.state import init_state
    from vit_flax.train.step import train_step

    config = RECIPES["digits"]().replace(steps=MARKS[-1], epochs=None, precision="bf16")
    source, held_out = (open_source(config.data, split, 1) for split in ("train", "test"))
    resolved = config.resolve(len(source))
    kept: Any = held_out
    test = {"image": jnp.asarray(kept.images), "label": jnp.asarray(kept.labels, jnp.int32)}

    def run(state: Any, images: Any, labels: Any) -> Any:
        def step(state: Any, batch: Any) -> tuple[Any, None]:
            return train_step(state, {"image": batch[0], "label": batch[1]}, resolved)[0], None

        found = []
        for first, last in zip((0, *MARKS), MARKS, strict=False):
            state, _ = lax.scan(step, state, (images[first:last], labels[first:last]))
            sums = eval_step(state.params, test, resolved)
            found.append(sums["correct"] / sums["count"])
        return jnp.stack(found)

    accuracies: dict[str, list[list[float]]] = {}
    for name, (platform, off) in RUNS.items():
        rows = accuracies[name] = []
        with compiled_for(platform):
            compiled = jax.jit(run)
            for seed in range(seeds):
                state = init_state(jax.random.key(seed), resolved)
                state = state.replace(params=_moved(state.params, off, seed))
                batches = draw_batches(source, config.data.batch_size, config.data.augment.shift_pixels, seed)
                rows.append(compiled(state, *batches).tolist())
        print(f"{name}: {statistics.mean(row[-1] for row in rows):.1%}", file=sys.stderr, flush=True)
    return accuracies


def _moved(params: Any, off: float, seed: int) -> Any:
    import jax

    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p * (1 + off * rng.standard_normal(p.shape)).astype(p.dtype), params)


def table(result: dict[str, Any]) -> str:
    """Returns the accuracies, and their differences from the first run's, as Markdown."""
    lines = [
        f"### Policies: digits after {MARKS[-1]} steps, {result['seeds']} seeds",
        f"{result['device']}, commit {result['commit']}; top-1 accuracy in bfloat16. Differences are from the first, "
        "seed by seed, in points: mean with its standard error, and the standard deviation, which is what one seed can "
        "tell.",
        "",
        f"| | {' | '.join(f'{mark} steps' for mark in MARKS)} | difference | of one seed |",
        f"|---|{'---|' * len(MARKS)}---|---|",
    ]
    first = np.asarray(next(iter(result["accuracies"].values())))
    for number, (name, rows) in enumerate(result["accuracies"].items()):
        own = 100 * np.asarray(rows)
        apart = own[:, -1] - 100 * first[:, -1]
        cells = [f"{mean:.1f} %" for mean in own.mean(0)]
        spread = apart.std(ddof=1)
        cells += [f"{apart.mean():+.1f} ± {spread / len(apart) ** 0.5:.1f}", f"{spread:.1f}"] if number else ["", ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains all runs and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=240, help="240 take three quarters of an hour on a core")
    options = parser.parse_args()
    import jax

    jax.config.update("jax_platforms", "cpu")
    accuracies = train(options.seeds)
    print(table(write(RESULTS / "policy_seeds.json", "policy_seeds", seeds=options.seeds, accuracies=accuracies)))


if __name__ == "__main__":
    main()
