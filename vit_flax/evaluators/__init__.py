"""What frozen features are worth: k-NN, a linear probe, retrieval; of any data source that training has."""
