"""The fixed sinusoidal position table."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def get_sinusoid_encoding(num_tokens: int, token_len: int) -> Float[Tensor, "1 n d"]:
    """Computes sines (even columns) and cosines (odd columns) of i / 10000^(2·(j//2)/token_len).

    Angles, sines and cosines are computed in float64 and rounded once, to float32.

    Reference: arXiv 1706.03762, section 3.5.
    """
    exponents = 2 * (np.arange(token_len) // 2) / token_len
    # (n, 1) / (d,) -> (n, d)
    table = np.arange(num_tokens, dtype=np.float64)[:, None] / np.power(10000.0, exponents)
    table[:, 0::2] = np.sin(table[:, 0::2])
    table[:, 1::2] = np.cos(table[:, 1::2])
    return torch.from_numpy(table.astype(np.float32)[None])
