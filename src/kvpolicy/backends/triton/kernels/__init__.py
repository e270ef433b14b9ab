"""Kernels: compiled for a GPU, or run by triton's interpreter."""
