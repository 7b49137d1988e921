"""Weights of other frameworks: files, tables of names, and the preprocessing that goes with them.

Numpy in and out; of PyTorch only the reader and writer of `.pth` files know.
"""
