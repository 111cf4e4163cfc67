"""Training by backpropagation, and evaluation."""
