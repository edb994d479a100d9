"""Measures whether the input pipeline keeps up: images a second of the loader beside those of the training step.

`python -m benchmarks.input_pipeline [--fashion-mnist DIR] [--rounds N] [--quick]` writes
benchmarks/results/input_pipeline.json. Two cases: `fashion_mnist` (28 x 28, flip and shift; the recipe's model) and
`jpeg_folder` (512-pixel JPEGs cut from scikit-learn's sample photographs; crop to 224 and flip as the finetune recipe;
ViT-S/16). Every round measures the loader alone, the step alone on batches held in memory, and both together as in the
training loop; a first round is not counted, and the results are medians and quartiles. Loader and step share the
machine's cores when they run together: 'together_share' is together over step alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS, write

FASHION_MNIST = "/usr/share/datasets/fashion-mnist"  # where Debian's dataset-fashion-mnist puts it
RESULT = RESULTS / "input_pipeline.json"
KINDS = ("loader", "step", "together")
SIDE = 512
AHEAD = 8  # batches, at least as many as a loader makes ahead


def make_photos(folder: Path, count: int) -> None:
    """Writes `count` JPEGs of SIDE pixels in two classes, cut from the sample photographs."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    rng = np.random.default_rng(0)
    for label in ("china", "flower"):
        photo = Image.fromarray(load_sample_image(f"{label}.jpg"))
        (folder / "train" / label).mkdir(parents=True)
        for index in range(count // 2):
            side = int(rng.integers(250, min(photo.size)))
            left, top = int(rng.integers(photo.width - side)), int(rng.integers(photo.height - side))
            cut = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            cut.save(folder / "train" / label / f"{index:04}.jpg", quality=90)


@dataclasses.dataclass
class Case:
    """A loader and the step that it feeds."""

    loader: Any
    run_step: Callable[[Any], Any]  # batch -> arrays to block on
    batch_size: int
    batches: int  # in one measurement
    model: str

    def prepare(self) -> None:
        """Compiles the step and fills the loader's buffers."""
        import jax

        self.held = [next(self.loader) for _ in range(2)]
        jax.block_until_ready(self.run_step(self.held[0]))

    def measure(self, kind: str) -> float:
        """Returns images per second of 'loader', 'step' or 'together'."""
        import jax

        for _ in range(0 if kind == "step" else AHEAD):
            next(self.loader)  # made while others were measured
        started = time.perf_counter()
        done: list[Any] = []
        for index in range(self.batches):
            batch = self.held[index % 2] if kind == "step" else next(self.loader)
            if kind != "loader":
                done.append(self.run_step(batch))
                if len(done) > 2:
                    jax.block_until_ready(done[-3])
        jax.block_until_ready(done[-1:])
        return self.batches * self.batch_size / (time.perf_counter() - started)


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Returns images per second of every kind, interleaved in each round, and their ratios."""
    case.prepare()
    rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(rounds + 1):
        for kind in KINDS:
            rate = case.measure(kind)
            if number:  # the first is not counted
                rates[kind].append(rate)
    case.loader.close()
    median = {kind: statistics.median(rates[kind]) for kind in KINDS}
    found: dict[str, Any] = {f"{kind}_images_per_second": summarise(rates[kind]) for kind in KINDS}
    found |= {"loader_over_step": median["loader"] / median["step"], "batch_size": case.batch_size}
    return found | {"together_share": median["together"] / median["step"], "model": case.model}


def make_case(config: Any, batches: int) -> Case:
    """Returns the case of a training config."""
    import jax

    from vit_flax.train.compilation import compile_step, create_state
    from vit_flax.train.data import open_source
    from vit_flax.train.data.loader import make_loader
    from vit_flax.train.sharding import make_mesh, place_batch

    model, data = config.model, config.data
    source = open_source(data, data.train_split, model.in_chans, model.num_classes)
    config = config.resolve(len(source))
    loader = make_loader(source, data, image_size=config.image_size, channels=model.in_chans, train=True)
    mesh = make_mesh(config.mesh, jax.devices())
    step = compile_step(config, mesh)
    held = {"state": create_state(config, mesh)}

    def run_step(batch: Any) -> Any:
        placed = place_batch({name: batch[name] for name in ("image", "label")}, mesh)
        held["state"], scalars = step(held["state"], placed)
        return scalars

    name = f"{'x'.join(map(str, config.image_size))}, width {model.embed_dim}, depth {model.depth}, {config.precision}"
    return Case(loader, run_step, data.batch_size, batches, name)


def configs(fashion: str | None, photos: Path, quick: bool, workers: int) -> dict[str, Any]:
    """Returns the training config of every case."""
    from vit_flax.presets import get_preset
    from vit_flax.recipes import get_recipe
    from vit_flax.train.config import AugmentConfig, DataConfig, TrainConfig

    found: dict[str, Any] = {}
    if fashion:
        found["fashion_mnist"] = get_recipe("fashion_mnist")(fashion).replace({"data.workers": workers})
    model = get_preset("vit_tiny_patch16_224" if quick else "vit_small_patch16_224").config
    if quick:
        model = model.replace(depth=1, embed_dim=48)
    data = DataConfig(
        name="image_folder", path=str(photos), batch_size=8 if quick else 32, workers=workers,
        augment=AugmentConfig(random_resized_crop=(0.5, 1.0), flip=True),
    )  # fmt: skip
    found["jpeg_folder"] = TrainConfig(model=model.replace(num_classes=2), data=data, epochs=100.0)
    return found


def summarise(values: list[float]) -> dict[str, float]:
    """Returns median and quartiles."""
    if len(values) < 2:
        return {"median": values[0], "lower_quartile": values[0], "upper_quartile": values[0]}
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "lower_quartile": lower, "upper_quartile": upper}


def table(result: dict[str, Any]) -> str:
    """Returns images per second of loader and training step as a Markdown table."""
    lines = [
        "### The loader beside the training step",
        f"{result['device']}, medians of {result['rounds']} interleaved rounds (quartiles), commit {result['commit']}",
        "",
        "| data | model | batch | loader, images/s | step, images/s | loader / step | together | of the step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["cases"].items():
        loader, step, both = (_rate(row[f"{kind}_images_per_second"]) for kind in ("loader", "step", "together"))
        ratios = f"{row['loader_over_step']:.1f} | {both} | {row['together_share']:.0%}"
        lines.append(f"| {name} | {row['model']} | {row['batch_size']} | {loader} | {step} | {ratios} |")
    return "\n".join(lines) + "\n"


def _rate(row: dict[str, float]) -> str:
    return f"{row['median']:.4g} ({row['lower_quartile']:.4g}-{row['upper_quartile']:.4g})"


def main() -> None:
    """Measures every case and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", metavar="DIR", default=FASHION_MNIST, help="folder of the IDX files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=5, help="batches in one measurement")
    parser.add_argument("--photos", type=int, default=512, help="JPEGs to make")
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0: threads")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--quick", action="store_true", help="one short round of small models, to see that it runs")
    options = parser.parse_args()
    rounds, batches, photos = (1, 3, 16) if options.quick else (options.rounds, options.batches, options.photos)
    fashion = options.fashion_mnist if Path(options.fashion_mnist).is_dir() else None
    if fashion is None:
        print(f"{options.fashion_mnist}: no such folder, fashion_mnist is left out", file=sys.stderr)

    from vit_flax.host_memory import keep_host_memory

    keep_host_memory()  # as the command line does
    import jax

    load, cases = os.getloadavg()[0], {}
    with tempfile.TemporaryDirectory() as folder:
        make_photos(Path(folder), photos)
        for name, config in configs(fashion, Path(folder), options.quick, options.workers).items():
            cases[name] = measure(make_case(config, batches), rounds)
            median = {kind: cases[name][f"{kind}_images_per_second"]["median"] for kind in KINDS}
            print(f"{name}: loader {median['loader']:.0f}, step {median['step']:.0f}, together "
                  f"{median['together']:.0f} images/s", file=sys.stderr)  # fmt: skip
    setting = {"rounds": rounds, "batches": batches, "workers": options.workers, "quick": options.quick}
    setting |= {"load_average": load, "jax_devices": jax.device_count()}
    if options.quick and options.output == RESULT:  # no figures
        return
    write(options.output, "input_pipeline", **setting, cases=cases)


if __name__ == "__main__":
    main()
