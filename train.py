"""Trains a network: python train.py [group=option] [key=value]; --help lists them.

On several GPUs: torchrun --nproc-per-node 8 train.py ...
"""

from optnet.app.train import main

if __name__ == "__main__":
    main()
