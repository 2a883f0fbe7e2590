"""Digits in image files: pictures made as MNIST was made, and the network asked about them."""
