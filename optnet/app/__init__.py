"""The application: Hydra, the command line, everything that prints or exits. Computes nothing itself."""
