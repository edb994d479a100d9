"""Times the tokens after four blocks, ours against timm's forward_intermediates in torch, in interleaved rounds.

python -m benchmarks.features --models B S --batches 8 32      # float32

Blocks are a quarter of the depth apart, the last one among them; grids come in each library's own order of axes.
"""

from benchmarks.races import run

if __name__ == "__main__":
    run("features", __doc__)
