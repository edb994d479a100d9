"""Images from files to what a model reads, on the host."""
