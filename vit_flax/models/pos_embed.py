"""Position tables."""

import numpy as np


def sinusoid_1d(num_tokens: int, token_len: int) -> np.ndarray:
    """Computes the fixed sinusoid table, shape (1, num_tokens, token_len), float32.

    Column j of row i is the sine (j even) or cosine (j odd) of i / 10000^(2 (j // 2) / token_len), in float64 until
    the end.

    Reference: get_sinusoid_encoding of the tutorial and of T2T-ViT; arXiv 1706.03762, section 3.5.
    """
    columns = np.arange(token_len)
    angles = np.arange(num_tokens)[:, None] / np.power(10000, 2 * (columns // 2) / token_len)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles))[None].astype(np.float32)
