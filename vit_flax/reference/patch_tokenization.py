"""Cuts an image into square patches and projects each to a token."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn


class Patch_Tokenization(nn.Module):
    """Projects the flattened non-overlapping patches of an image to tokens.

    Patches run row by row; inside a patch the values run channel, row, column. Height and width may differ.

    Args:
        img_size: (channels, height, width).
        patch_size: side of a square patch in pixels.
        token_len: length of a token after the projection.

    Raises:
        ValueError: if the height or the width is not a multiple of patch_size.
    """

    def __init__(self, img_size: Sequence[int] = (1, 400, 100), patch_size: int = 50, token_len: int = 768):
        super().__init__()
        channels, height, width = unpack_img_size(img_size)
        for name, size in (("height", height), ("width", width)):
            if size % patch_size:
                raise ValueError(f"the image {name} {size} is not divisible by the patch size {patch_size}")
        self.img_size = (channels, height, width)
        self.patch_size = patch_size
        self.token_len = token_len
        self.num_tokens = (height // patch_size) * (width // patch_size)
        self.split = nn.Unfold(kernel_size=patch_size, stride=patch_size)
        self.project = nn.Linear(channels * patch_size**2, token_len)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Computes the patch tokens; raises ValueError for images of another size than img_size."""
        check_images(x, self.img_size)
        # (b, c*p*p, n) -> (b, n, c*p*p)
        x = self.split(x).transpose(1, 2)
        return self.project(x)


def unpack_img_size(img_size: Sequence[int]) -> tuple[int, int, int]:
    """Returns img_size as three positive integers (channels, height, width).

    Raises:
        ValueError: if it is anything else.
    """
    if len(img_size) != 3 or min(img_size) < 1:
        raise ValueError(f"img_size must be three positive numbers (channels, height, width), not {tuple(img_size)}")
    channels, height, width = img_size
    return channels, height, width


def check_images(x: Tensor, img_size: tuple[int, int, int]) -> None:
    """Raises ValueError unless x is a batch of images of exactly img_size (channels, height, width)."""
    if x.ndim != 4 or tuple(x.shape[1:]) != img_size:
        channels, height, width = img_size
        raise ValueError(f"expected images of shape (batch, {channels}, {height}, {width}), got {tuple(x.shape)}")
