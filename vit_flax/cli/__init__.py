"""The command line `vit-flax`, one file per command."""
