"""Programs as networks: layers, the unroller, image networks and the zoo. Trains nothing."""
