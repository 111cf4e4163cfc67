"""Evaluates: python evaluate.py checkpoint=FILE | model=NAME [data=...] [key=value]; --help lists them."""

from optnet.app.evaluate import main

if __name__ == "__main__":
    main()
