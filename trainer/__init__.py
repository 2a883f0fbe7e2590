"""Data-parallel MNIST training in JAX, on a triangle wave that is a function of the step counter.

The way from the command to the learning rate: `python -m trainer` calls `cli.main`, which calls
`loop.train`, which calls the step made by `steps.create_train_step`.
"""
