"""Evaluators of frozen features: k-NN, a linear probe and retrieval, on any data source of training."""
