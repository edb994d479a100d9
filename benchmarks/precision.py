"""The error of each precision against float64 on the same weights: `python -m benchmarks.precision [--model S]`.

Logits, and the gradients of the mean cross-entropy with respect to all parameters, against timm's model in float64 on
the CPU, which ours in float64 must equal to 1e-9. Weights are random: kernels normal with a variance of 1 / inputs, so
that every block counts and logits are of size one; class token, positions, biases and norm scales are random too. Each
seed has weights and images of its own. The relative error is ||x - reference|| / ||reference|| over all numbers, the
largest is max |x - reference|; medians of the seeds with the smallest and largest. Writes
benchmarks/results/precision.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cases import MODELS, Case
from benchmarks.peers import Job
from benchmarks.results import RESULTS, summarise, write

EXACT = 1e-9
MEASURES = ("logits_relative", "logits_largest", "gradients_relative", "gradients_largest")

Arrays = dict[str, np.ndarray]
Answer = tuple[np.ndarray, Arrays]  # logits, and gradients under timm's names or the contestant's own


def make_job(model: str, batch: int, seed: int, folder: Path) -> Job:
    """Writes random weights in timm's layout and returns them with images and labels."""
    from vit_flax.convert import get_layout, write_checkpoint
    from vit_flax.convert.moves import to_tensors
    from vit_flax.models import build_model
    from vit_flax.models.shapes import expected_shapes

    rng = np.random.default_rng(seed)
    case = Case(model, batch, "float32", "train_step")
    cfg = case.config
    params = {}
    for name, shape in expected_shapes(build_model(cfg)).items():
        values = rng.standard_normal(shape)
        kind = name.rpartition("/")[2]
        if kind == "kernel":
            values = values / np.sqrt(np.prod(shape[:-1]))
        elif kind == "scale":
            values = 1 + 0.1 * values
        else:  # biases, class token, positions
            values = 0.1 * values
        params[name] = values.astype(np.float32)
    path = folder / f"{seed}.safetensors"
    write_checkpoint(path, to_tensors(params, get_layout("timm").rules(cfg)), {})
    images = rng.standard_normal((batch, *cfg.image_size, cfg.in_chans), np.float32)
    return Job(case, path, images, rng.integers(0, cfg.num_classes, batch, np.int32))


def by_torch(job: Job, dtype: str, autocast: bool = False) -> Answer:
    """Returns timm's answer in torch."""
    import torch

    from benchmarks.peers.torch_timm import build

    device = "cuda" if torch.cuda.is_available() and dtype != "float64" else "cpu"
    model = build(job).to(device, getattr(torch, dtype))
    images = torch.tensor(job.images, device=device, dtype=getattr(torch, dtype)).permute(0, 3, 1, 2)
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        logits = model(images)
    loss = torch.nn.functional.cross_entropy(
        logits if dtype == "float64" else logits.float(), torch.tensor(job.labels, dtype=torch.long, device=device)
    )
    loss.backward()
    gradients = {name: p.grad.double().cpu().numpy() for name, p in model.named_parameters() if p.grad is not None}
    return logits.detach().double().cpu().numpy(), gradients


def by_jax(job: Job, apply: Callable[[Any, Any], Any], params: Any, dtype: str) -> tuple[np.ndarray, Any]:
    """Returns logits and gradients of a JAX model."""
    import jax
    import jax.numpy as jnp

    def loss(params: Any, images: Any) -> Any:
        logits = apply(params, images)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        picked = jnp.take_along_axis(jax.nn.log_softmax(wide), jnp.asarray(job.labels)[:, None], axis=-1)
        return -picked.mean(), logits

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), params)
    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params, jnp.asarray(job.images, dtype))
    return np.asarray(logits, np.float64), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), gradients)


def by_vit_flax(
    job: Job,
    dtype: str,
    compute: str | None = None,
    precision: str = "HIGHEST",
    platform: str = "cpu",
    scan: bool = False,
) -> Answer:
    """Returns our answer, with activations stored as on that platform; a TPU's kernel is interpreted."""
    import jax
    from jax.experimental.pallas import tpu as pltpu

    import vit_flax
    from vit_flax.models import build_model
    from vit_flax.models.precision import compiled_for

    cfg = job.case.config
    _, params = vit_flax.load(job.weights, "timm", cfg)
    model = build_model(cfg, param_dtype=dtype, dtype=compute, precision=jax.lax.Precision[precision], scan=scan)
    with compiled_for(platform), pltpu.force_tpu_interpret_mode():
        logits, gradients = by_jax(job, lambda p, x: model.apply({"params": p}, x), params, dtype)
    return logits, {name: np.asarray(value) for name, value in vit_flax.to_state_dict(model, gradients, "timm").items()}


def by_linen(job: Job, compute: str) -> Answer:
    """Returns the answer of a ViT of stock linen layers; its gradients are in its own names."""
    import jax.numpy as jnp
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import load_file

    from benchmarks.peers.linen import PlainViT, convert

    cfg = job.case.config
    model = PlainViT(cfg, None if compute == "float32" else jnp.dtype(compute), scan=False)
    params = convert(load_file(job.weights), cfg, scan=False)
    logits, gradients = by_jax(job, lambda p, x: model.apply({"params": p}, x), params, "float32")
    return logits, flatten_dict(gradients, sep="/")  # pyright: ignore[reportReturnType]


CONTESTANTS: dict[str, Callable[[Job], Answer]] = {
    "vit_flax float32, Precision.HIGHEST": lambda job: by_vit_flax(job, "float32"),
    "vit_flax float32, Precision.DEFAULT": lambda job: by_vit_flax(job, "float32", precision="DEFAULT"),
    "linen float32": lambda job: by_linen(job, "float32"),
    "torch float32": lambda job: by_torch(job, "float32"),
    "vit_flax bfloat16 operands": lambda job: by_vit_flax(job, "float32", "bfloat16"),
    "vit_flax bfloat16, stored too, as on GPU": lambda job: by_vit_flax(job, "float32", "bfloat16", platform="gpu"),
    "vit_flax bfloat16, stored too, as on TPU": lambda job: by_vit_flax(job, "float32", "bfloat16", platform="tpu"),
    "vit_flax bfloat16, scanned, as on GPU": lambda job: by_vit_flax(
        job, "float32", "bfloat16", platform="gpu", scan=True
    ),
    "vit_flax bfloat16, scanned, as on TPU": lambda job: by_vit_flax(
        job, "float32", "bfloat16", platform="tpu", scan=True
    ),
    "linen bfloat16": lambda job: by_linen(job, "bfloat16"),
    "torch bfloat16 autocast": lambda job: by_torch(job, "float32", autocast=True),
}


def errors(answer: Answer, exact: Answer) -> dict[str, float]:
    """Returns the four measures of an answer."""
    found = {}
    pairs = {"logits": ([answer[0]], [exact[0]]), "gradients": (answer[1].values(), exact[1].values())}
    for name, (ours, right) in pairs.items():
        differences = [(a.reshape(b.shape) - b).ravel() for a, b in zip(ours, right, strict=True)]
        difference = np.concatenate(differences)
        size = np.linalg.norm(np.concatenate([b.ravel() for b in right]))
        found[f"{name}_relative"] = float(np.linalg.norm(difference) / size)
        found[f"{name}_largest"] = float(np.abs(difference).max())
    return found


def in_order(gradients: Arrays, like: Arrays) -> Arrays:
    """Returns gradients in the order of `like`; raises KeyError where the names differ."""
    if gradients.keys() != like.keys():
        raise KeyError(f"gradients of other parameters: {sorted(gradients.keys() ^ like.keys())}")
    return {name: gradients[name] for name in like}


def linen_names(gradients: Arrays, job: Job) -> Arrays:
    """Renames gradients from timm's names to linen's."""
    from flax.traverse_util import flatten_dict

    from benchmarks.peers.linen import convert

    return flatten_dict(convert(gradients, job.case.config, scan=False), sep="/")  # pyright: ignore[reportReturnType]


def measure(job: Job) -> dict[str, dict[str, float]]:
    """Returns every contestant's errors on one job.

    Raises:
        SystemExit: ours in float64 is not torch's in float64.
    """
    import jax

    exact = by_torch(job, "float64")
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        logits, gradients = by_vit_flax(job, "float64")
    agreement = errors((logits, in_order(gradients, exact[1])), exact)
    if max(agreement["logits_relative"], agreement["gradients_relative"]) > EXACT:
        raise SystemExit(f"float64 disagrees: {agreement}")
    found = {"vit_flax float64": agreement}
    for name, run in CONTESTANTS.items():
        print(f"{job.weights.stem}: {name}", file=sys.stderr, flush=True)
        logits, gradients = run(job)
        right = linen_names(exact[1], job) if name.startswith("linen") else exact[1]
        found[name] = errors((logits, in_order(gradients, right)), (exact[0], right))
    return found


def table(result: dict[str, Any]) -> str:
    """Returns the rows as Markdown."""
    lines = [
        f"### Precision: {result['model']}, {result['batch']} images, {result['seeds']} seeds, against float64",
        f"{result['device']}, commit {result['commit']}; medians, with the smallest and the largest of the seeds. "
        f"Logits have a standard deviation of {result['logits_std']:.2f}.",
        "",
        "| | logits, relative | logits, largest | gradients, relative | gradients, largest |",
        "|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        cells = [f"{row[m]['median']:.1e} ({row[m]['low']:.1e}-{row[m]['high']:.1e})" for m in MEASURES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures every seed and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="S", choices=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "precision.json")
    options = parser.parse_args()
    found: list[dict[str, dict[str, float]]] = []
    deviations = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            job = make_job(options.model, options.batch, seed, Path(folder))
            found.append(measure(job))
            deviations.append(float(by_vit_flax(job, "float32")[0].std()))
            job.weights.unlink()
    rows = {name: summarise([one[name] for one in found]) for name in found[0]}
    settings = {"model": options.model, "batch": options.batch, "seeds": options.seeds}
    settings |= {"logits_std": statistics.median(deviations)}
    print(table(write(options.output, "precision", **settings, rows=rows)))


if __name__ == "__main__":
    main()
