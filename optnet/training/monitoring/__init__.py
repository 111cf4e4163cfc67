"""What can be seen of a network in training: pure functions from a model to numbers and figures, and TensorBoard."""
