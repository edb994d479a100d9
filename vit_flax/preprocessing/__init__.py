"""Images to what the models take. NumPy only."""
