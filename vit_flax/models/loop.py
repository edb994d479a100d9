"""The blocks of a model one after the other: with recomputation in the backward pass, or as one scanned loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree

NO_REMAT = "none"


def checkpoint_policy(remat: str) -> Callable[..., bool] | None:
    """Returns what jax.checkpoint keeps under that name: of jax.checkpoint_policies, or 'full' for nothing.

    Raises:
        ValueError: there is no such policy.
    """
    if remat == "full":
        return None
    if remat == "offload_dot_with_no_batch_dims":
        return jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host")
    policy = getattr(jax.checkpoint_policies, remat, None)
    if policy is None or remat.startswith(("_", "save_", "offload_")):
        raise ValueError(f"no remat policy {remat!r}: 'none', 'full' or a plain name of jax.checkpoint_policies")
    return policy


def run_blocks(
    blocks: Sequence[nn.Module],
    params: Sequence[PyTree] | None,
    inputs: Sequence[Array | None],
    keys: Array | None,
    tokens: Float[Array, "b n d"],
    remat: str,
    scan: bool,
) -> Float[Array, "b n d"]:
    """Returns the tokens after all blocks; each gets its own of `inputs`, and key of `keys` for dropout.

    A scanned loop compiles one block instead of all of them. It stacks their parameters on the way in, so that the
    parameters of the model keep their names.

    Args:
        blocks: modules; bound to the model where `params` is None, and then called as they are.
        params: of each block.
        inputs: what tells attention where the tokens are, a tree of arrays or None.
        keys: one a block, or None.
        tokens: that go in.
        remat: what the backward pass keeps; see `checkpoint_policy`.
        scan: as one scanned loop.
    """

    def call(block: nn.Module, given: Any) -> Callable[[Array, Any, Any], Array]:
        def run(tokens: Array, own: Any, key: Any) -> Array:
            if own is None:
                return block(tokens, given)  # pyright: ignore[reportCallIssue]
            rngs = {} if key is None else {"dropout": key}
            out: Any = block.apply({"params": own}, tokens, given, rngs=rngs)
            return out

        return run if remat == NO_REMAT else jax.checkpoint(run, policy=checkpoint_policy(remat))

    if not scan:
        for i, block in enumerate(blocks):
            own, key = (None if rows is None else rows[i] for rows in (params, keys))
            tokens = call(block, inputs[i])(tokens, own, key)
        return tokens

    assert params is not None
    # what all blocks get stays out of the loop, and a constant
    alike = all(given is inputs[0] for given in inputs)
    different = None if alike else jax.tree.map(lambda *leaves: jnp.stack(leaves), *inputs)
    rates = [getattr(block, "drop_path", 0.0) for block in blocks]

    def body(tokens: Array, of_block: Any) -> tuple[Array, None]:
        own, key, rate, different = of_block
        block = blocks[0] if keys is None or not any(rates) else blocks[0].clone(drop_path=rate)
        return call(block, inputs[0] if alike else different)(tokens, own, key), None

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    # the loop's carry keeps one dtype: a block may widen what it is given
    own = jax.eval_shape(lambda x: call(blocks[0], inputs[0])(x, params[0], None), tokens)
    return lax.scan(body, tokens.astype(own.dtype), (stacked, keys, jnp.asarray(rates, jnp.float32), different))[0]
