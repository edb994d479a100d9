"""The blocks of a model one after the other: with recomputation in the backward pass, or as one scanned loop."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, PyTree

from vit_flax.config import ViTConfig
from vit_flax.models.attention import WEIGHTS
from vit_flax.models.fence import unknown_numbers
from vit_flax.models.image_parts import count_parts, forward_in_parts, held_on_chip, join, split
from vit_flax.models.placed import custom_vjp
from vit_flax.models.precision import accumulator_dtype, with_kernels_in

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
    inputs: Sequence[PyTree],
    keys: Array | None,
    tokens: Float[Array, "b n d"],
    remat: str,
    scan: bool,
    taken: Sequence[int] = (),
    parts: int = 1,
) -> tuple[Float[Array, "b m e"], list[Float[Array, "b _ _"]]]:
    """Returns the tokens after all blocks, and after each of the `taken` ones.

    Each block gets its own of `inputs`, and key of `keys` for dropout.

    A scanned loop compiles one block instead of all of them. It stacks their parameters on the way in, so that the
    parameters of the model keep their names, and stores their gradients before they are taken apart: in the dtype in
    which `params` are given.

    Args:
        blocks: modules; bound to the model where `params` is None, and then called as they are.
        params: of each block.
        inputs: what tells attention where the tokens are, a tree of arrays or None.
        keys: one a block, or None.
        tokens: that go in.
        remat: what the backward pass keeps; see `checkpoint_policy`.
        scan: as one scanned loop.
        taken: numbers of blocks, ascending; the tokens after the others are not kept.
        parts: of the images that a block takes one after the other; see `image_parts`.
    """

    def call(block: nn.Module, given: Any) -> Callable[[Array, Any, Any], Array]:
        def run(tokens: Array, own: Any, key: Any) -> Array:
            if own is None:
                return block(tokens, given)  # pyright: ignore[reportCallIssue]
            rngs = {} if key is None else {"dropout": key}
            out: Any = block.apply({"params": own}, tokens, given, rngs=rngs)
            return out

        return run if remat == NO_REMAT else jax.checkpoint(run, policy=checkpoint_policy(remat))

    def call_each(block: nn.Module, given: Any, tokens: list[Array], own: Any, key: Any) -> list[Array]:
        tokens = [call(block, given)(part, own, key) for part in tokens]
        # the next block waits for all parts: otherwise its weights might be read again for each
        return tokens if parts == 1 else lax.optimization_barrier(tokens)

    if not scan:
        found, of_parts = [], split(tokens, parts)
        for i, block in enumerate(blocks):
            own, key = (None if rows is None else rows[i] for rows in (params, keys))
            of_parts = call_each(block, inputs[i], of_parts, own, key)
            if i in taken:
                found.append(join(of_parts))
        return join(of_parts), found

    assert params is not None
    # what all blocks get stays out of the loop, and a constant
    alike = all(given is inputs[0] for given in inputs)
    rates = [getattr(block, "drop_path", 0.0) for block in blocks]

    def body(carry: tuple[list[Array], Array | None], of_block: Any) -> tuple[tuple[list[Array], Array | None], None]:
        (tokens, kept), (own, key, rate, different, place) = carry, of_block
        block = blocks[0] if keys is None or not any(rates) else blocks[0].clone(drop_path=rate)
        own = own if parts == 1 else held_on_chip(own)
        tokens = call_each(block, inputs[0] if alike else different, tokens, own, key)
        if kept is not None:
            kept = lax.dynamic_update_index_in_dim(kept, join(tokens), place, 0)
        return (tokens, kept), None

    def loop(tokens: Array, kept: Array | None, first: int, last: int) -> tuple[Array, Array | None]:
        """Returns tokens and what is kept after blocks `first` to `last`."""

        def stacked(rows: Sequence[Any]) -> Any:
            return jax.tree.map(lambda *leaves: _stack(places, leaves), *rows[first:last])

        places = unknown_numbers(tokens, last - first)
        rows = (
            stacked(params),
            None if keys is None else keys[first:last],
            jnp.asarray(rates[first:last], jnp.float32),
        )
        # a block writes where the next one that is asked for will write: what stands there in the end is that one's
        kept_at = jnp.asarray([bisect_left(taken, i) for i in range(first, last)], jnp.int32)
        rows = *rows, None if alike else stacked(inputs), kept_at
        of_parts, kept = lax.scan(body, (split(tokens, parts), kept), rows)[0]
        return join(of_parts), kept

    # the loop's carry keeps one dtype: a block may widen what it is given
    own = jax.eval_shape(lambda x: call(blocks[0], inputs[0])(x, params[0], None), tokens)
    tokens, kept, done = tokens.astype(own.dtype), None, 0
    if taken:
        done = taken[-1] + 1
        tokens, kept = loop(tokens, jnp.stack([tokens] * len(taken)), 0, done)
    if done < len(blocks):
        tokens, _ = loop(tokens, None, done, len(blocks))
    return tokens, [] if kept is None else list(kept)


def _stack(places: tuple[Array, ...] | None, rows: tuple[Array, ...]) -> Array:
    return jnp.stack(rows) if places is None else _stack_at(places, rows)


@custom_vjp
def _stack_at(places: tuple[Array, ...], rows: tuple[Array, ...]) -> Array:
    """Stacks rows; the gradient of each is taken from its place, so that for a CPU all are compiled as one."""
    del places
    return jnp.stack(rows)


def _stack_forward(places: tuple[Array, ...], rows: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    return jnp.stack(rows), places


def _stack_backward(places: tuple[Array, ...], g: Array) -> tuple[None, tuple[Array, ...]]:
    def row(place: Array) -> Array:
        start = place, *[np.uint32(0)] * (g.ndim - 1)
        return lax.squeeze(lax.dynamic_slice(g, start, (1, *g.shape[1:]), allow_negative_indices=False), [0])

    return None, tuple(row(place) for place in places)


_stack_at.defvjp(_stack_forward, _stack_backward)


class Runnable(Protocol):
    """A bound model whose blocks are run."""

    remat: str
    scan: bool

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks, in their order."""
        ...

    @property
    def variables(self) -> Mapping[str, PyTree]:
        """Its parameters, by collection."""
        ...

    def has_rng(self, name: str) -> bool:
        """Whether a key was given."""
        ...

    def make_rng(self, name: str) -> Array:
        """Returns a key."""
        ...

    def is_initializing(self) -> bool:
        """Whether parameters are being made."""
        ...

    def is_mutable_collection(self, col: str) -> bool:
        """Whether the caller asked for what is written there."""
        ...


def run_model(
    model: Runnable, tokens: Float[Array, "b n d"], inputs: Sequence[Array | None], taken: Sequence[int] = ()
) -> tuple[Float[Array, "b m e"], list[Float[Array, "b _ _"]]]:
    """Returns what `run_blocks` does of a bound model's first blocks, run as its `remat` and `scan` say.

    Args:
        model: the linen module, with its `blocks`.
        tokens: that go in.
        inputs: what each block is given that is run.
        taken: as in `run_blocks`.

    Raises:
        ValueError: they are to be scanned, and are not alike.
    """
    depth = len(inputs)
    is_random = model.has_rng("dropout") and not model.is_initializing()
    parts = 1 if is_random or model.is_initializing() else _count_parts(model, tokens, inputs)
    if model.is_initializing() or not (is_random or model.scan or model.remat != NO_REMAT or parts > 1):
        return run_blocks(model.blocks[:depth], None, inputs, None, tokens, NO_REMAT, scan=False, taken=taken)
    first: Any = model.blocks[0]
    if model.scan:
        _check_alike(first.config, depth)
    params = [model.variables["params"][f"blocks_{i}"] for i in range(depth)]
    keys = jax.random.split(model.make_rng("dropout"), len(model.blocks))[:depth] if is_random else None
    blocks = [block.clone() for block in model.blocks[:depth]]

    def run(params: Sequence[PyTree], tokens: Array, parts: int) -> tuple[Array, list[Array]]:
        if model.scan and (parts > 1 or first.precision.is_stored_as_computed):  # what the loop stacks is read again
            params = [with_kernels_in(own, first.precision.compute) for own in params]
        return run_blocks(blocks, params, inputs, keys, tokens, model.remat, model.scan, taken, parts)

    return run(params, tokens, 1) if parts == 1 else forward_in_parts(run, parts, params, tokens)


def _count_parts(model: Runnable, tokens: Array, inputs: Sequence[Array | np.ndarray | None]) -> int:
    """Returns the number of parts of the images; 1 where a block is told of each, or writes down what it computes."""
    is_told = not all(given is None or isinstance(given, np.ndarray) for given in inputs)
    if is_told or any(model.is_mutable_collection(name) for name in (WEIGHTS, "intermediates")):
        return 1
    first: Any = model.blocks[0]
    rows = jax.tree.leaves(model.variables["params"]["blocks_0"])
    stored = first.precision.stored or accumulator_dtype(first.precision.compute or tokens.dtype)
    return count_parts(tokens, max(leaf.shape[-1] for leaf in rows), jnp.dtype(stored).itemsize)


def are_alike(config: ViTConfig) -> bool:
    """Returns whether all blocks are the same but for their parameters, as a scanned loop needs them."""
    return not config.block.startswith("diff") and not any(config.position.representatives(config.depth))


def _check_alike(config: ViTConfig, depth: int) -> None:
    """Raises ValueError where blocks are not alike but for their parameters."""
    needs = "scan needs blocks that are alike, and those of"
    if config.block.startswith("diff"):
        raise ValueError(f"{needs} block={config.block!r} are not")
    if any(config.position.representatives(depth)):
        raise ValueError(
            f"{needs} {config.family.name} are not: some attend inside windows, some to the whole grid, "
            "or their widths differ"
        )
