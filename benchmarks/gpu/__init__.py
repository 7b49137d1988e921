"""One command that measures everything on a machine with a GPU: `python -m benchmarks.gpu`."""
