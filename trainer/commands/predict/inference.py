"""What a trained network says about pictures; `predict` and `export` share the function."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from trainer import devices
from trainer.commands.predict.images import IMAGE_SHAPE, digit_pixels, object_pixels, read_image
from trainer.commands.predict.ink import ImageError
from trainer.errors import UsageError
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
        self.image_shape = tuple(checkpoint.inputs["image_shape"])
        self.dataset = checkpoint.config.dataset
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
          "label" for other data sets than MNIST; or {"file": path, "error": what is wrong with it}.

        Raises:
          UsageError: how pictures are prepared for this data set is not known.
        """
        if self.dataset not in _PREPARE or self.image_shape != IMAGE_SHAPE:
            raise UsageError(
                f"the run was trained on --dataset={self.dataset}, and how a picture becomes one "
                f"of its images is not known; use a run on {', '.join(_PREPARE)}, or export "
                "and prepare the images yourself"
            )
        name, prepare = _PREPARE[self.dataset]
        batch_size = min(_BATCH_SIZE, len(paths))
        infer = jax.jit(self.infer)
        for start in range(0, len(paths), batch_size or 1):
            # The last batch is filled up with black: one shape, compiled once.
            images = np.zeros((batch_size, *self.image_shape), np.uint8)
            errors: dict[int, str] = {}
            batch = paths[start : start + batch_size]
            for row, path in enumerate(batch):
                try:
                    images[row] = prepare(read_image(path))
                except ImageError as error:
                    errors[row] = str(error)
            rows = np.asarray(infer(images))
            for row, path in enumerate(batch):
                if row in errors:
                    yield {"file": path, "error": errors[row]}
                    continue
                label, probabilities = int(rows[row].argmax()), rows[row].tolist()
                yield {"file": path, name: label, "probabilities": probabilities}
