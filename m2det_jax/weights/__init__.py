"""Weights of other frameworks: files, tables of names, and the preprocessing that they need.

Arrays are numpy. Only the reader and the writer of `.pth` files use PyTorch.
"""
