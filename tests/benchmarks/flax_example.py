"""MNIST as the example of Flax trains it: one jitted step a batch, batches cut by the host.

The same network as ours, SGD with momentum, inputs in [0, 1]. The example's two jitted functions
are one here, which is not slower.
"""

import functools
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState


class CNN(nn.Module):
    """32-64-256-10."""

    @nn.compact
    def __call__(self, x):
        """Map images float32[B, 28, 28, 1] to logits."""
        for features in (32, 64):
            x = nn.relu(nn.Conv(features, kernel_size=(3, 3))(x))
            x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
        return nn.Dense(10)(x)


def _loss(params, apply_fn, images, labels):
    """Return the mean loss and the fraction of right answers."""
    logits = apply_fn({"params": params}, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
    return loss, (logits.argmax(-1) == labels).mean()


@jax.jit
def train_step(state, images, labels):
    """Take one step."""
    (loss, accuracy), grads = jax.value_and_grad(_loss, has_aux=True)(
        state.params, state.apply_fn, images, labels
    )
    return state.apply_gradients(grads=grads), loss, accuracy


@functools.partial(jax.jit, static_argnums=1)
def eval_step(params, apply_fn, images, labels):
    """Return loss and accuracy of a whole split at once, as the example does."""
    return _loss(params, apply_fn, images, labels)


class Training:
    """A run that never ends."""

    def __init__(self, arrays: str, batch_size: int, seed: int = 0):
        """Load the data and make the state; nothing of the step is compiled yet.

        Args:
          arrays: folder of the data set as .npy files.
          batch_size: examples in a step.
          seed: of parameters and data order.
        """
        folder = pathlib.Path(arrays)
        self._images, self._labels, self._test_images, self._test_labels = (
            np.load(folder / f"{name}.npy")
            for name in ("train_images", "train_labels", "test_images", "test_labels")
        )
        self._images, self._test_images = (
            np.divide(images, 255, dtype=np.float32) for images in (self._images, self._test_images)
        )
        self._batch_size = batch_size
        self._random = np.random.default_rng(seed)
        self._batches = self._epochs()
        cnn = CNN()
        params = cnn.init(jax.random.key(seed), jnp.ones([1, 28, 28, 1]))["params"]
        self._state = TrainState.create(
            apply_fn=cnn.apply, params=params, tx=optax.sgd(0.1, momentum=0.9)
        )

    def describe(self) -> str:
        """Return the devices in words."""
        return f"1 device ({jax.default_backend()})"

    def turn(self, count: int) -> float:
        """Return the seconds of some steps."""
        begin = time.perf_counter()
        metrics = []
        for _ in range(count):
            images, labels = next(self._batches)
            self._state, *of_batch = train_step(self._state, images, labels)
            metrics.append(of_batch)
        loss, _ = np.mean(jax.device_get(metrics), axis=0)
        jax.block_until_ready(self._state)
        assert np.isfinite(loss)
        return time.perf_counter() - begin

    def bare_turn(self, count: int) -> float:
        """Return the seconds of some calls of the compiled step on one batch."""
        images, labels = map(jnp.asarray, next(self._batches))
        jax.block_until_ready((self._state, images))
        begin = time.perf_counter()
        for _ in range(count):
            self._state, *_ = train_step(self._state, images, labels)
        jax.block_until_ready(self._state)
        return time.perf_counter() - begin

    def epoch_and_test(self) -> dict[str, float]:
        """Train an epoch and test.

        Returns:
          "seconds", and "accuracy" (a fraction) on the test split.
        """
        begin = time.perf_counter()
        self.turn(len(self._images) // self._batch_size)
        accuracy = self._test()
        return {"seconds": time.perf_counter() - begin, "accuracy": accuracy}

    def train_and_test(self, count: int) -> None:
        """Train some steps and test."""
        self.turn(count)
        self._test()

    def _test(self) -> float:
        """Return the accuracy on the test split."""
        _, accuracy = eval_step(
            self._state.params, self._state.apply_fn, self._test_images, self._test_labels
        )
        return float(accuracy)

    def _epochs(self):
        """Yield the batches of one epoch after the other."""
        while True:
            order = self._random.permutation(len(self._images))
            order = order[: len(order) - len(order) % self._batch_size]
            for batch in order.reshape(-1, self._batch_size):
                yield self._images[batch], self._labels[batch]
