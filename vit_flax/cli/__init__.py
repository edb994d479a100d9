"""The command line `vit-flax`: one file a command."""
