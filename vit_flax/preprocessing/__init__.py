"""Image preprocessing on the host, from files to a model's input."""
