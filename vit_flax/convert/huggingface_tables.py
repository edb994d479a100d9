"""Every layout of Hugging Face's models, and how the config.json of each of their model types is read: a line each."""

from __future__ import annotations

from vit_flax.convert.config_files import Family
from vit_flax.convert.huggingface_aimv2 import AIMV2_FAMILIES, AIMV2_LAYOUTS
from vit_flax.convert.huggingface_beit import BEIT_FAMILIES, BEIT_LAYOUTS
from vit_flax.convert.huggingface_clip import CLIP_FAMILIES, CLIP_LAYOUTS
from vit_flax.convert.huggingface_data2vec import DATA2VEC_FAMILIES, DATA2VEC_LAYOUTS
from vit_flax.convert.huggingface_dinov2 import DINOV2_FAMILIES, DINOV2_LAYOUTS
from vit_flax.convert.huggingface_dinov3 import DINOV3_FAMILIES, DINOV3_LAYOUTS
from vit_flax.convert.huggingface_internvl import INTERNVL_FAMILIES, INTERNVL_LAYOUTS
from vit_flax.convert.huggingface_mlcd import MLCD_FAMILIES, MLCD_LAYOUTS
from vit_flax.convert.huggingface_pixio import PIXIO_FAMILIES, PIXIO_LAYOUTS
from vit_flax.convert.huggingface_radio import RADIO_FAMILIES, RADIO_LAYOUTS
from vit_flax.convert.huggingface_relatives import RELATED_FAMILIES, RELATED_LAYOUTS
from vit_flax.convert.huggingface_sam import SAM_FAMILIES, SAM_LAYOUTS
from vit_flax.convert.huggingface_sam2 import SAM2_FAMILIES, SAM2_LAYOUTS
from vit_flax.convert.huggingface_sam3 import SAM3_FAMILIES, SAM3_LAYOUTS
from vit_flax.convert.huggingface_siglip import SIGLIP_FAMILIES, SIGLIP_LAYOUTS
from vit_flax.convert.huggingface_tipsv2 import TIPSV2_FAMILIES, TIPSV2_LAYOUTS
from vit_flax.convert.huggingface_vit import VIT_FAMILIES, VIT_LAYOUTS
from vit_flax.convert.huggingface_vitdet import VITDET_FAMILIES, VITDET_LAYOUTS
from vit_flax.convert.layout import Layout

# From the general to the special, as `vit_flax.convert` has all layouts.
HUGGINGFACE_LAYOUTS: tuple[Layout, ...] = (
    *VIT_LAYOUTS,
    *BEIT_LAYOUTS,
    *DATA2VEC_LAYOUTS,
    *DINOV2_LAYOUTS,
    *DINOV3_LAYOUTS,
    *SIGLIP_LAYOUTS,
    *CLIP_LAYOUTS,
    *RELATED_LAYOUTS,
    *AIMV2_LAYOUTS,
    *INTERNVL_LAYOUTS,
    *MLCD_LAYOUTS,
    *PIXIO_LAYOUTS,
    *RADIO_LAYOUTS,
    *TIPSV2_LAYOUTS,
    *SAM_LAYOUTS,
    *SAM2_LAYOUTS,
    *SAM3_LAYOUTS,
    *VITDET_LAYOUTS,
)
# By the model_type of config.json.
HUGGINGFACE_FAMILIES: dict[str, Family] = {
    **VIT_FAMILIES,
    **BEIT_FAMILIES,
    **DATA2VEC_FAMILIES,
    **DINOV2_FAMILIES,
    **DINOV3_FAMILIES,
    **SIGLIP_FAMILIES,
    **CLIP_FAMILIES,
    **RELATED_FAMILIES,
    **AIMV2_FAMILIES,
    **INTERNVL_FAMILIES,
    **MLCD_FAMILIES,
    **PIXIO_FAMILIES,
    **RADIO_FAMILIES,
    **TIPSV2_FAMILIES,
    **SAM_FAMILIES,
    **SAM2_FAMILIES,
    **SAM3_FAMILIES,
    **VITDET_FAMILIES,
}
