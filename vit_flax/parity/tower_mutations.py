"""Deliberate errors of text towers and of the logits of images and texts; each must be caught, as in `mutations`.

Each is applied to a small transformers model of random weights: `vit-flax compare --mutate text_causal`.
"""

from __future__ import annotations

import numpy as np

from vit_flax.parity.small_mutation import SmallMutation
from vit_flax.parity.wrong_tensors import changed, exchanged

_TEXT = "text_model"
_BLOCK = f"{_TEXT}.encoder.layers.0"
_SEEN_IN_ATTENTION = f"{_BLOCK}.self_attn.out_proj:input"
_SEEN_IN_POOLING = {"clip": "text_projection", "metaclip_2": "text_projection", "siglip": f"{_TEXT}.head"}
_LOGITS = "logits_per_image"


def _pooled(name: str, description: str, case: str, **fields: object) -> SmallMutation:
    return SmallMutation(name, description, case, _SEEN_IN_POOLING[case], fields)


TOWER_MUTATIONS: dict[str, SmallMutation] = {
    m.name: m
    for m in (
        SmallMutation("text_not_causal", "no causal mask in the text tower (CLIP)", "clip", _SEEN_IN_ATTENTION,
                      {"text_causal": False}),
        SmallMutation("text_causal", "a causal mask in the text tower (SigLIP)", "siglip",
                      _SEEN_IN_ATTENTION, {"text_causal": True}),
        _pooled("text_end_highest", "pooling at the highest token id, not at EOS", "clip", text_pool="argmax"),
        _pooled("text_last", "pooling at the last token, not at EOS", "clip", text_pool="last"),
        _pooled("text_end_sought", "pooling at the highest token id, not the last token", "siglip", text_pool="argmax"),
        _pooled("text_other_end", "another token id as EOS", "metaclip_2", text_eos_token_id=0),
        SmallMutation("text_exact_gelu", "exact GELU instead of CLIP's quick GELU", "clip", f"{_BLOCK}.mlp.fc2:input",
                      {"text_activation": "gelu"}),
        SmallMutation("text_erf_gelu", "exact GELU instead of SigLIP's tanh GELU", "siglip", f"{_BLOCK}.mlp.fc2:input",
                      {"text_activation": "gelu"}),
        SmallMutation("text_norm_eps", "another epsilon in the text tower's norms", "clip", f"{_BLOCK}.layer_norm1",
                      {"text_norm_eps": 1e-3}),
        SmallMutation("text_heads", "half as many heads in the text tower", "clip", _SEEN_IN_ATTENTION,
                      {"text_num_heads": 2}),
        SmallMutation("text_keys_for_values", "keys and values of the text tower swapped", "clip", _SEEN_IN_ATTENTION,
                      exchanged(f"{_BLOCK}.self_attn.k_proj", f"{_BLOCK}.self_attn.v_proj")),
        SmallMutation("text_positions_shifted", "position embeddings one row off", "siglip", f"{_BLOCK}:input",
                      changed(f"{_TEXT}.embeddings.position", lambda a: np.roll(a, 1, 0))),
        SmallMutation("text_tokens_shifted", "token embeddings one row off", "siglip", f"{_BLOCK}:input",
                      changed(f"{_TEXT}.embeddings.token", lambda a: np.roll(a, 1, 0))),
        SmallMutation("text_projection_turned", "text projection not transposed", "siglip", f"{_TEXT}.head",
                      changed(f"{_TEXT}.head.weight", lambda a: a.T)),
        SmallMutation("text_projection_bias", "text projection's bias subtracted", "siglip",
                      f"{_TEXT}.head", changed(f"{_TEXT}.head.bias", lambda a: -a)),
        SmallMutation("text_final_norm", "scales of the text tower's final norm reversed", "clip",
                      f"{_TEXT}.final_layer_norm", changed(f"{_TEXT}.final_layer_norm", lambda a: a[::-1])),
        SmallMutation("logit_scale", "another logit scale", "clip", _LOGITS,
                      changed("logit_scale", lambda a: a + 1), "outputs"),
        SmallMutation("logit_bias", "another logit bias", "siglip", _LOGITS,
                      changed("logit_bias", lambda a: a + 1), "outputs"),
    )
}  # fmt: skip
