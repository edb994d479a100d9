"""Times ours against itself with one part in its plain form: the fence, linear layers, attention, LayerNorm, GELU.

python -m benchmarks.formulations                              # the training step of B and S, float32, batch 8
python -m benchmarks.formulations --models S --mode inference
"""

from __future__ import annotations

import argparse

from benchmarks.cases import MODELS, Case
from benchmarks.peers.formulations import PLAIN
from benchmarks.races import table
from benchmarks.results import RESULTS, save
from benchmarks.rounds import Contestant, race


def main() -> None:
    """Races every formulation and writes benchmarks/results/formulations-*.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["B", "S"], choices=MODELS, metavar="MODEL")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mode", choices=["inference", "train_step"], default="train_step")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    contestants = [Contestant("as it is", "vit_flax", keep_memory=True)]
    contestants += [Contestant(f"plain {part}", "formulations", part, keep_memory=True) for part in PLAIN]
    for model in options.models:
        case = Case(model, options.batch, options.precision, options.mode)
        result = race(case, contestants, options.rounds, seconds=1.0)
        result["name"] = f"formulations-{case.name}"
        print(table(result), flush=True)
        save(RESULTS / f"{result['name']}.json", result)


if __name__ == "__main__":
    main()
