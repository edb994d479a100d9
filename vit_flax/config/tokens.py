"""How an image becomes tokens: patches, normalised or overlapping ones, soft splits, patches padded to one number."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from vit_flax.config.checks import Pair, integers, pair, require_choice, require_int
from vit_flax.config.part import Part, ShardingRule

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig

# how the tokens between two soft splits attend
TOKENS_TYPES = ("transformer", "performer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens(Part):
    """How an image becomes tokens."""

    path: ClassVar[str] = "patch_embed"  # of its parameters
    stem: ClassVar[tuple[str, ...]] = ("patch_embed/.*",)
    pads: ClassVar[bool] = False  # takes patches of images of any size, with a mask and each image's grid

    def grid_size(self, image_size: Pair) -> Pair:
        """Returns the tokens along height and width, or raises ValueError where the image does not divide."""
        raise NotImplementedError

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where the image does not divide into tokens."""
        self.grid_size(config.image_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormedPatches(Tokens):
    """Patches normalised before and after their projection, as vit-pytorch has them."""

    patch_size: Pair = (16, 16)  # (height, width) in pixels; an int means a square

    def __post_init__(self) -> None:
        """Normalises the pair."""
        object.__setattr__(self, "patch_size", pair("patch_size", self.patch_size))

    def grid_size(self, image_size: Pair) -> Pair:
        """Returns the patches along height and width."""
        return _patches(image_size, self.patch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedPatches(NormedPatches):
    """Patches of images of any aspect ratio, padded to one number, as SigLIP 2's NaFlex models have them.

    `image_size` is what the position table was made for; the model resizes it for every image.
    """

    pads: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Patches(NormedPatches):
    """Patches, each projected to a token; arXiv 2010.11929."""

    crop_to_patches: bool = False  # leave out pixels beyond the last whole patch, instead of refusing such a size
    patch_bias: bool = True
    patch_norm: bool = False  # normalise the patch tokens before anything is added

    def grid_size(self, image_size: Pair) -> Pair:
        """Returns the patches along height and width."""
        return _patches(image_size, self.patch_size, self.crop_to_patches)


def _patches(image_size: Pair, patch_size: Pair, crop: bool | None = None) -> Pair:
    sides = []
    for side, pixels, patch in zip(("height", "width"), image_size, patch_size, strict=True):
        if pixels < patch or (pixels % patch and not crop):
            crops = " (`crop_to_patches=True` leaves the rest out, as a convolution does)"
            way = crops if crop is not None and pixels >= patch else ""
            raise ValueError(f"image {side} {pixels} is not divisible by the patch size {patch}{way}")
        sides.append(pixels // patch)
    return sides[0], sides[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class OverlappingPatches(Tokens):
    """Overlapping patches, each projected to a token; SAM 2."""

    patch_kernel: Pair = (7, 7)  # (height, width) of a patch in pixels; an int means a square, here and below
    patch_stride: Pair = (4, 4)  # stride of the patches in pixels
    patch_padding: tuple[int, int] = (3, 3)  # zero padding on each side of the image

    def __post_init__(self) -> None:
        """Normalises the pairs."""
        for name in ("patch_kernel", "patch_stride"):
            object.__setattr__(self, name, pair(name, getattr(self, name)))
        padding = integers("patch_padding", self.patch_padding, minimum=0)
        object.__setattr__(self, "patch_padding", padding * 2 if len(padding) == 1 else padding)
        if len(self.patch_padding) != 2:
            raise ValueError(f"patch_padding must be one number or a pair (height, width), got {padding}")

    def grid_size(self, image_size: Pair) -> Pair:
        """Returns the patches along height and width."""
        sides = zip(image_size, self.patch_kernel, self.patch_stride, self.patch_padding, strict=True)
        height, width = ((pixels + 2 * padding - kernel) // stride + 1 for pixels, kernel, stride, padding in sides)
        if min(height, width) < 1:
            raise ValueError(f"image {image_size} is too small for patches of {self.patch_kernel}")
        return height, width


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftSplits(Tokens):
    """Three overlapping soft splits with attention between them; arXiv 2101.11986."""

    path: ClassVar[str] = "tokens_to_token"
    stem: ClassVar[tuple[str, ...]] = ("tokens_to_token/.*",)
    fixed: ClassVar[tuple[str, ...]] = ("random_features",)  # of the performer
    sharding: ClassVar[tuple[ShardingRule, ...]] = ((r"(.*/)?random_features", (("fsdp", "tensor"),), ("fsdp",), ()),)

    softsplit_kernels: tuple[int, int, int] = (7, 3, 3)
    token_chan: int = 64  # width of the two token transformers
    token_num_heads: int | None = None  # None: num_heads, as in the reference
    token_mlp_ratio: float = 1.0
    tokens_type: str = "transformer"  # 'performer' attends in time linear in the tokens, by random features
    token_qkv_bias: bool | None = None  # of the token transformers; None: qkv_bias. A performer has biases always
    token_input_scale: bool = False  # their attention's scale is their input's width ** -0.5, and not qk_scale

    def __post_init__(self) -> None:
        """Checks what stands by itself."""
        object.__setattr__(self, "softsplit_kernels", tuple(self.softsplit_kernels))
        if len(self.softsplit_kernels) != 3 or not all(isinstance(k, int) and k > 0 for k in self.softsplit_kernels):
            raise ValueError(f"softsplit_kernels must be three positive integers, got {self.softsplit_kernels!r}")
        require_int("token_chan", self.token_chan, minimum=1)
        require_choice("tokens_type", self.tokens_type, TOKENS_TYPES)

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where the soft splits fit neither the image nor the heads."""
        heads = self.heads(config)
        if self.tokens_type == "performer":
            names: dict[str, Any] = {"token_qkv_bias": None, "token_input_scale": False, "token_mlp_ratio": 1.0}
            wrong = [f"{name}={getattr(self, name)!r}" for name, value in names.items() if getattr(self, name) != value]
            wrong += [f"token_num_heads={heads}"] * (heads != 1)
            if wrong:
                raise ValueError(f"tokens_type='performer' has one head and no {', '.join(wrong)}")
        if self.token_chan % heads:
            raise ValueError(f"token_chan {self.token_chan} is not divisible by its num_heads {heads}")
        super().check(config)

    def heads(self, config: ViTConfig) -> int:
        """Returns the heads of the two token transformers."""
        return self.token_num_heads or config.num_heads

    def grid_sizes(self, image_size: Pair) -> tuple[Pair, ...]:
        """Returns the tokens along height and width after each of the three soft splits."""
        grids, size = [], image_size
        for kernel in self.softsplit_kernels:
            size = (softsplit_size(size[0], kernel), softsplit_size(size[1], kernel))
            if min(size) < 1:
                raise ValueError(f"image {image_size} is too small for soft splits {self.softsplit_kernels}")
            grids.append(size)
        return tuple(grids)

    def grid_size(self, image_size: Pair) -> Pair:
        """Returns the tokens along height and width after the last soft split."""
        return self.grid_sizes(image_size)[-1]


def softsplit_size(pixels: int, kernel: int) -> int:
    """Returns how many windows a soft split lays along `pixels`: stride (k+1)//2, padding (k+1)//4."""
    stride, padding = (kernel + 1) // 2, (kernel + 1) // 4
    return (pixels + 2 * padding - kernel) // stride + 1
