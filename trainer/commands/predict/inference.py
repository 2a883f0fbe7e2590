"""What a trained network says about pictures; `predict` and `export` share the function."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from trainer import devices
from trainer.commands.predict.images import (
    IMAGE_SHAPE,
    digit_pixels,
    object_pixels,
    plain_pixels,
    read_image,
)
from trainer.commands.predict.ink import ImageError
from trainer.run.selection import AS_TRAINED, Selection
from trainer.run.stored import Checkpoint
from trainer.step.examples import scale_pixels

# Pictures that the network takes at once.
_BATCH_SIZE = 128

# How a picture becomes what the network was trained on, and what its classes are.
_PREPARE = {
    "mnist": ("digit", digit_pixels),
    "kmnist": ("label", object_pixels),
    "fashion_mnist": ("label", object_pixels),
}


def create_inference(checkpoint: Checkpoint) -> Callable[[jax.Array], jax.Array]:
    """Return the function from images, as they are in a data set, to probabilities.

    Args:
      checkpoint: whose network answers; its parameters become part of the function.

    Returns:
      infer(images uint8[B, H, W, C]) -> float32[B, num_classes], each row adding up to 1; pure.
    """
    mean, std = (jnp.float32(checkpoint.inputs[name]) for name in ("mean", "std"))

    def infer(images: jax.Array) -> jax.Array:
        inputs = scale_pixels(images, mean, std)
        logits = checkpoint.network.apply(checkpoint.params, checkpoint.statistics, inputs)
        return jax.nn.softmax(logits)

    return infer


class Predictor:
    """A checkpoint of a run, ready to be asked about pictures."""

    def __init__(
        self,
        workdir: epath.PathLike,
        platform: str = "auto",
        selection: Selection = AS_TRAINED,
    ):
        """Read the checkpoint; no data set is needed.

        Args:
          workdir: of a run.
          platform: "auto", "cpu", "gpu" or "tpu"; one device of it is used.
          selection: which parameters answer.

        Raises:
          UsageError: there is no checkpoint, or no such device.
          RunError: no checkpoint is good.
        """
        devices.create_mesh(platform, 1)
        checkpoint = selection.load(workdir)
        self.image_shape: tuple[int, int, int] = tuple(checkpoint.inputs["image_shape"])
        self.dataset = checkpoint.config.dataset
        self.class_names = checkpoint.inputs.get("class_names", [])
        self._resized = bool(checkpoint.config.image_size)
        self.model = checkpoint.config.model
        self.step = checkpoint.step
        self.infer = create_inference(checkpoint)

    def predict(self, paths: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Answer for one picture after the other, in the order of the paths.

        Args:
          paths: files of any format that Pillow reads, one digit in each (or one character, one
            garment, where the network has learned those).

        Yields:
          {"file": path, "digit": int, "probabilities": [float of every class]}, where "digit" is
          "label" for other data sets than MNIST, with "class" for its name if that is known; or
          {"file": path, "error": what is wrong with it}.
        """
        name, prepare = self._preparation()
        batch_size = min(_BATCH_SIZE, len(paths))
        infer = jax.jit(self.infer)
        for start in range(0, len(paths), batch_size or 1):
            # The last batch is filled up with black: one shape, compiled once.
            images = np.zeros((batch_size, *self.image_shape), np.uint8)
            errors: dict[int, str] = {}
            batch = paths[start : start + batch_size]
            for row, path in enumerate(batch):
                try:
                    images[row] = prepare(path)
                except ImageError as error:
                    errors[row] = str(error)
            rows = np.asarray(infer(images))
            for row, path in enumerate(batch):
                if row in errors:
                    yield {"file": path, "error": errors[row]}
                    continue
                label, probabilities = int(rows[row].argmax()), rows[row].tolist()
                known = name == "label" and self.class_names
                of_class = {"class": self.class_names[label]} if known else {}
                yield {"file": path, name: label, **of_class, "probabilities": probabilities}

    def _preparation(self) -> tuple[str, Callable[[str], np.ndarray]]:
        """Return what a label is called, and the function from a file to the network's pixels."""
        if self.dataset in _PREPARE and self.image_shape == IMAGE_SHAPE:
            name, prepare = _PREPARE[self.dataset]
            return name, lambda path: prepare(read_image(path))
        # Of other data sets a picture is what it was when they were prepared.
        return "label", lambda path: plain_pixels(path, self.image_shape, self._resized)
