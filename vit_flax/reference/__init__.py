"""PyTorch ViT and T2T-ViT of the series "Vision Transformers, Explained", written anew as the model to compare against.

Class names, constructor arguments, state_dict keys and initialisation are the series'; images are (B, C, H, W).
Corrected against the printed series: the patch tokens are transposed to (B, N, D), the backbone is given its token
count, token counts are integers, and image sizes are (C, H, W). Its import needs PyTorch; of the package only `parity`
imports it, when a comparison runs.

Reference: arXiv 2010.11929 (ViT), arXiv 2101.11986 (T2T-ViT).
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("vit_flax.reference needs PyTorch: pip install torch", name="torch") from error

from vit_flax.reference.attention import Attention
from vit_flax.reference.digits import digits_images, digits_split, load_digits_reference
from vit_flax.reference.encoding import Encoding
from vit_flax.reference.neural_net import NeuralNet
from vit_flax.reference.patch_tokenization import Patch_Tokenization
from vit_flax.reference.pos_embed import get_sinusoid_encoding
from vit_flax.reference.t2t import T2T_ViT, Tokens2Token, TokenTransformer
from vit_flax.reference.vit import ViT_Backbone, ViT_Model

__all__ = [
    "Attention",
    "Encoding",
    "NeuralNet",
    "Patch_Tokenization",
    "T2T_ViT",
    "TokenTransformer",
    "Tokens2Token",
    "ViT_Backbone",
    "ViT_Model",
    "digits_images",
    "digits_split",
    "get_sinusoid_encoding",
    "load_digits_reference",
]
