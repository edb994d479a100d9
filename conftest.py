"""Tests run on the CPU unless the environment says otherwise: libtpu, which `vit-flax plan` asks, seeks a TPU first."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
