"""Times the forward pass of ours and of other libraries in interleaved rounds.

python -m benchmarks.inference --models B S --batches 8 32      # float32
python -m benchmarks.inference --models T --batches 256
python -m benchmarks.inference --models B S --batches 8 --precisions bfloat16
"""

from benchmarks.races import run

if __name__ == "__main__":
    run("inference", __doc__)
