"""Every tolerance of the parity method, each with its derivation. Nothing here is tuned to a result."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypedDict

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jax.typing import DTypeLike

    from vit_flax.models import Precision


class Tolerance(TypedDict):
    """Arguments of `numpy.testing.assert_allclose` and `torch.testing.assert_close`."""

    rtol: float
    atol: float


# A right port agrees with torch in float64 up to rounding: 2.2e-16 an operation, some 1e-13 at the end of a deep model.
# The smallest real error found in practice (another epsilon, 1e-6 against 1e-5) is above 1e-7. 1e-9 lies between, with
# a margin on both sides.
FLOAT64_RELATIVE = 1e-9

# Functions without a sum of many terms (a resizing kernel, a loss, a mixture of two images) agree to a few roundings.
FLOAT64_ROUNDING = 1e-12

# An activation is a handful of special functions (exp, log1p, tanh, erf), each within two units in the last place in
# either library: so many spacings of its dtype, float64 or float32. A gradient multiplies and subtracts such values,
# which loses up to ten times as much.
ACTIVATION_SPACINGS = 16.0
ACTIVATION_GRADIENT_SPACINGS = 160.0

# The smallest relative difference that counts as a deliberate error being seen: a hundred times the tolerance, so that
# no rounding passes for one.
SEEN = 1e-7
# Another definition (a resampling kernel, an activation, a missing mask), not another epsilon: ten times as large.
ANOTHER_DEFINITION = 1e-6

# In float32 both frameworks round, in different orders. The error of each is measured against torch's float64; ours may
# be larger by a small factor, since sums of n terms in another order differ by sqrt(n) at random, not by digits.
FLOAT32_FACTOR = 4.0
FLOAT32_EPS = float(np.finfo(np.float32).eps)
# Two float32 programs of one small model (depth 2, width at most 64) sum the same terms in another order: 64 roundings
# of 1.2e-7, and next to zero as many of the largest term, which is near 0.1 there.
FLOAT32_RELATIVE = 1e-5
FLOAT32_ABSOLUTE = 1e-6
# A quotient, or a sum of a few terms, is eight roundings off at most.
FLOAT32_ROUNDING = 1e-6
# Another library or processor, whose kernels sum in an order of their own, beside ours: some 170 roundings, for models
# as small. Sharded sums likewise.
FLOAT32_LIBRARIES = Tolerance(rtol=2e-5, atol=2e-5)
# Gradients of such models are sums over every token and image, of both signs: up to 20 times as far in small entries.
FLOAT32_GRADIENT = Tolerance(rtol=2e-4, atol=2e-6)
# Logits through files and another program, after training: weights have grown, and a softmax or a sum over the classes
# adds up what every block rounded.
FLOAT32_LOGITS = Tolerance(rtol=1e-4, atol=1e-5)
# A deliberate error in float32 is seen from ten times FLOAT32_RELATIVE on.
FLOAT32_SEEN = 1e-4
# Probabilities of one photograph by two libraries: their logits agree to FLOAT32_LOGITS, of which a softmax passes on a
# quarter at most. A wrong mean, filter or crop moved them by 0.07 or more wherever it was tried.
PROBABILITY = 1e-4
# Logits and features of a photograph by two libraries, of which one may round to another of 256 levels in a few pixels.
PHOTO_RELATIVE = 1e-3
FLOAT64_EPS = float(np.finfo(np.float64).eps)

# Some gradients are zero in exact arithmetic (a key bias: softmax ignores a constant), so what is computed for them is
# pure rounding of terms as large as the largest gradient. An absolute difference below this many roundings of the
# largest is allowed.
ROUNDINGS = 64.0


def float64_allowed(reference_norm: float, largest_norm: float) -> float:
    """Returns the largest 2-norm allowed of a float64 difference.

    Args:
        reference_norm: 2-norm of torch's array.
        largest_norm: largest 2-norm of the arrays of the same kind.
    """
    return FLOAT64_RELATIVE * reference_norm + ROUNDINGS * FLOAT64_EPS * largest_norm


def float32_allowed(torch_error: float, reference_norm: float, largest_norm: float) -> float:
    """Returns the largest 2-norm allowed of Flax's float32 error, given torch's; norms as in `float64_allowed`."""
    return FLOAT32_FACTOR * max(torch_error, FLOAT32_EPS * reference_norm) + FLOAT32_EPS * largest_norm


# Losses of 20 training steps on another kind of machine, relative. Sums in another order differ by 6e-8 a step, which
# Adam amplifies: with the batch on two devices in place of one the worst of three recipes, one in bfloat16, was 1.3e-4
# off; fifteen times that leaves room for other processors.
OTHER_MACHINE = 2e-3


# The expected error, against float64, of a model of random weights under a `Precision`. Roundings counted in a block's
# two residual branches (attention, MLP):
KERNELS = 4  # of qkv, proj, fc1 and fc2
OPERANDS = 8  # of those four products, and queries, keys, attention weights and values
RESULTS = 10  # both norms, qkv, logits, attention weights, weighted values, proj, fc1, its activation, fc2
PRODUCTS = 6  # each a sum of many terms
# and once a model: the patch embedding multiplies pixels and a kernel, the head normed tokens and a kernel
END_KERNELS, END_OPERANDS, END_RESULTS = 2, 2, 2
# A gradient multiplies stored activations by a cotangent, which has the error of the logits and as many roundings of
# the backward pass: three errors of one size, whose squares add up.
GRADIENT_FACTOR = math.sqrt(3)
# The above is an expectation. The norm of a few numbers scatters around it, and layers amplify relative errors a little
# (GELU by 1.04 in the mean): twice the expectation covers both for twenty logits.
SCATTER = 2.0


def rounding(dtype: DTypeLike) -> float:
    """Returns the root mean square of the relative error of rounding to `dtype`.

    An error is spread evenly over a unit in the last place, eps of the power of two below a number: its standard
    deviation is eps / sqrt(12) of that power. Numbers lie evenly between two powers on a logarithmic scale: the mean
    square of the power over the number is 3 / (8 ln 2). Together eps / sqrt(32 ln 2).
    """
    return float(jnp.finfo(dtype).eps) / math.sqrt(32 * math.log(2))


def policy_allowed(policy: Precision, depth: int, terms: int) -> float:
    """Returns the error allowed, relative to their norm, of a ViT's logits computed under `policy`, against float64.

    Roundings are independent, so their squares add up. A branch's output is one part in n + 1 of the residual stream
    after n branches (they are alike, and point in random directions), so the roundings of all branches weigh
    1 + 1/2 + 1/3 ... in the end, less than 1 + ln n; roundings of the stream itself weigh one each. Layers are taken to
    keep a relative error.

    Args:
        policy: the dtypes, as on a CPU, whose float32 products have full precision whatever `products` says.
        depth: number of blocks.
        terms: number of terms of the longest sum in a product, each of which adds a rounding.
    """
    wide = jnp.promote_types(policy.params, jnp.float32)
    compute, stored, stream = (dtype or wide for dtype in (policy.compute, policy.stored, policy.stream))
    multiplied, kept, flowing, summed = (rounding(dtype) ** 2 for dtype in (compute, stored, stream, wide))
    branches = 2 * depth
    weight = (1 + math.log(branches)) / 2  # of the counts above, which are of two branches
    operands = multiplied if multiplied > kept else 0.0  # otherwise storing has rounded them already
    total = (KERNELS * weight + END_KERNELS) * multiplied
    total += (OPERANDS * weight + END_OPERANDS) * operands
    total += (RESULTS * weight + END_RESULTS) * kept
    total += (PRODUCTS * weight + END_KERNELS) * terms * summed
    total += branches * flowing
    return SCATTER * math.sqrt(total)
