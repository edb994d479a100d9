"""Trained models as files that run without this library: ONNX, and StableHLO of jax.export.

`program` is the exported function, `pixels` its preprocessing of raw images, `onnx_file` and `stablehlo_file` the two
formats, `checking` the comparison with the model before anything is written.
"""

from vit_flax.export.exporting import Exported, export_model

__all__ = ["Exported", "export_model"]
