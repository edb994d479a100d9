"""LoRA: low-rank adapters of frozen kernels, W + A B alpha / r, for every family of models.

Reference: arXiv 2106.09685; peft.LoraConfig. `places` selects the kernels, `adapters` is the arithmetic, `peft_folder`
reads and writes adapters in peft's format, whose tensors are `peft_tensors`. Models do not know of adapters: `merged`
returns ordinary parameters.
"""
