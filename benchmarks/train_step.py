"""Times a training step (loss, gradients, AdamW) of ours and of other libraries in interleaved rounds.

python -m benchmarks.train_step --models B S --batches 8 32     # float32
python -m benchmarks.train_step --models B S --batches 8 --precisions bfloat16
"""

from benchmarks.races import run

if __name__ == "__main__":
    run("train_step", __doc__)
