"""LoRA: small matrices beside frozen kernels, W + A B alpha / r, for every family of models.

Reference: arXiv 2106.09685; peft.LoraConfig. `places` says which kernels, `adapters` is the arithmetic, `peft_folder`
reads and writes adapters as peft has them. No model knows of it: `merged` gives parameters like any other's.
"""
