"""MNIST in plain PyTorch: our network in several forms, and PyTorch's own MNIST example.

The data lie in memory as float32 tensors (on a GPU: on the GPU), a batch is an index into them:
kinder to PyTorch than the data loader that its example uses.
"""

import pathlib
import time

import numpy as np

from tests.benchmarks.workers import SkippedError

try:
    import torch
    import torch.nn.functional as functional
    from torch import nn
except ModuleNotFoundError as error:
    raise SkippedError(f"{error.name} is not installed: pip install -e '.[bench]'") from error


def _device(platform: str) -> torch.device:
    """Return the device for a platform, "cpu" or "gpu"."""
    if platform == "gpu":
        if not torch.cuda.is_available():
            raise SkippedError("torch finds no GPU")
        # jax multiplies float32 in TF32 on such GPUs, unless told otherwise.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda")
    return torch.device("cpu")


def _load(arrays: str, split: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images float32[N, 1, 28, 28] in [0, 1] and labels int64[N] of a split."""
    folder = pathlib.Path(arrays)
    images = torch.from_numpy(np.load(folder / f"{split}_images.npy")).to(device)
    labels = torch.from_numpy(np.load(folder / f"{split}_labels.npy")).to(device)
    return images.permute(0, 3, 1, 2).contiguous().float().div_(255), labels.long()


def _cnn() -> nn.Module:
    """Return our network, 32-64-256-10."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(3136, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


class Training:
    """Our network, SGD with momentum; a run that never ends."""

    def __init__(
        self,
        arrays: str,
        batch_size: int,
        platform: str = "cpu",
        channels_last: bool = False,
        compiled: bool = False,
        cuda_graph: bool = False,
    ):
        """Load the data and make the network; nothing of the step is compiled yet.

        Args:
          arrays: folder of the data set as .npy files.
          batch_size: examples in a step.
          platform: "cpu" or "gpu".
          channels_last: the order of the dimensions in memory, NHWC instead of NCHW.
          compiled: torch.compile the network.
          cuda_graph: record the whole step once, on a GPU, and replay it.
        """
        torch.manual_seed(0)
        self._device = _device(platform)
        self._images, self._labels = _load(arrays, "train", self._device)
        self._test_images, self._test_labels = _load(arrays, "test", self._device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        model = _cnn().to(self._device, memory_format=self._format)
        self._optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self._model = torch.compile(model) if compiled else model
        self._batch_size = batch_size
        self._batches = self._epochs()
        self._loss = torch.zeros((), device=self._device)
        self._graph = self._record() if cuda_graph else None

    def describe(self) -> str:
        """Return device and threads in words."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_name()
        return f"{torch.get_num_threads()} threads"

    def turn(self, count: int) -> float:
        """Return the seconds of some steps."""
        begin = time.perf_counter()
        for _ in range(count):
            batch = next(self._batches)
            if self._graph:
                self._batch.copy_(batch)
                self._graph.replay()
            else:
                self._step(batch)
        assert np.isfinite(self._loss.item())  # It also waits for the GPU.
        return time.perf_counter() - begin

    def train_and_test(self, count: int) -> None:
        """Train some steps and test."""
        self.turn(count)
        with torch.no_grad():
            for images in self._test_images.split(1000):
                self._model(images.to(memory_format=self._format)).argmax(1)

    def _step(self, batch: torch.Tensor) -> None:
        """Take one step on the examples at `batch`."""
        images = self._images[batch].to(memory_format=self._format)
        self._optimizer.zero_grad()
        loss = functional.cross_entropy(self._model(images), self._labels[batch])
        loss.backward()
        self._optimizer.step()
        self._loss = loss.detach()

    def _record(self) -> "torch.cuda.CUDAGraph":
        """Return the step as a CUDA graph that reads the examples at self._batch."""
        self._batch = next(self._batches).clone()
        # PyTorch asks for some steps on another stream first, so that everything is allocated.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._step(self._batch)
        torch.cuda.current_stream().wait_stream(stream)
        self._optimizer.zero_grad()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step(self._batch)
        return graph

    def _epochs(self):
        """Yield the batches, indices into the data, of one epoch after the other."""
        while True:
            order = torch.randperm(len(self._images), device=self._device)
            yield from order[: len(order) - len(order) % self._batch_size].split(self._batch_size)


class _ExampleNet(nn.Module):
    """The network of PyTorch's MNIST example."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.head = nn.Sequential(
            nn.Dropout(0.25),
            nn.Flatten(),
            nn.Linear(9216, 128),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(128, 10),
            nn.LogSoftmax(1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images to the logarithms of probabilities."""
        return self.head(self.convolutions(images))


class Example:
    """PyTorch's MNIST example with its own settings: Adadelta, rate 1.0, 0.7 times every epoch."""

    def __init__(self, arrays: str, batch_size: int, platform: str = "cpu", seed: int = 1):
        """Load the data and make the network; see `Training` for the arguments."""
        torch.manual_seed(seed)
        device = _device(platform)
        self._images, self._labels = _load(arrays, "train", device)
        self._test_images, self._test_labels = _load(arrays, "test", device)
        for images in (self._images, self._test_images):
            images.sub_(0.1307).div_(0.3081)
        self._batch_size = batch_size
        self._model = _ExampleNet().to(device)
        self._optimizer = torch.optim.Adadelta(self._model.parameters(), lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.StepLR(self._optimizer, step_size=1, gamma=0.7)

    def describe(self) -> str:
        """Return device and threads in words."""
        return f"{self._images.device}, {torch.get_num_threads()} threads"

    def turn(self, count: int) -> float:
        """Return the seconds of the first steps of an epoch."""
        begin = time.perf_counter()
        self._train(self._order()[:count])
        return time.perf_counter() - begin

    def epoch_and_test(self) -> dict[str, float]:
        """Train an epoch and test; see `flax_example.Training.epoch_and_test`."""
        begin = time.perf_counter()
        self._train(self._order())
        self._scheduler.step()
        self._model.eval()
        correct = 0
        with torch.no_grad():
            for images, labels in zip(
                self._test_images.split(1000), self._test_labels.split(1000), strict=True
            ):
                correct += (self._model(images).argmax(1) == labels).sum().item()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "accuracy": correct / len(self._test_images)}

    def _order(self) -> tuple[torch.Tensor, ...]:
        """Return the batches of an epoch, the last one smaller."""
        order = torch.randperm(len(self._images), device=self._images.device)
        return order.split(self._batch_size)

    def _train(self, batches: tuple[torch.Tensor, ...]) -> None:
        """Take one step a batch."""
        self._model.train()
        for batch in batches:
            self._optimizer.zero_grad()
            loss = functional.nll_loss(self._model(self._images[batch]), self._labels[batch])
            loss.backward()
            self._optimizer.step()
        assert np.isfinite(loss.item())
