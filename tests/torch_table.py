"""Record what PyTorch's CyclicLR does in each mode; the tests compare the schedules with it.

    pip install torch numpy && python -m tests.torch_table

makes tests/data/torch_cyclic_lr.npz: for each mode the learning rates ("lr_<mode>") and momenta
("momentum_<mode>") as float64, at every 37th of 20,000 steps. 37 and the 500 steps of a cycle have
no common factor, so every place in a cycle is there. The file in the repository was made with
torch 2.13.0.
"""

from pathlib import Path

import numpy as np

PATH = Path(__file__).parent / "data" / "torch_cyclic_lr.npz"
MODES = ("triangular", "triangular2", "exp_range")
LR_MIN, LR_MAX, MOMENTUM_MIN, MOMENTUM_MAX = 0.001, 0.006, 0.8, 0.9
STEPS_PER_CYCLE, GAMMA = 500, 0.99994
STEPS = np.arange(0, 20_000, 37)


def cyclic_lr(mode: str, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The learning rates and the momenta of every step, as PyTorch computes them."""
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=LR_MIN, momentum=MOMENTUM_MAX)
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer,
        base_lr=LR_MIN,
        max_lr=LR_MAX,
        step_size_up=STEPS_PER_CYCLE // 2,
        mode=mode,
        gamma=GAMMA,
        base_momentum=MOMENTUM_MIN,
        max_momentum=MOMENTUM_MAX,
    )
    rates, momenta = np.zeros(num_steps), np.zeros(num_steps)
    for step in range(num_steps):
        rates[step] = optimizer.param_groups[0]["lr"]
        momenta[step] = optimizer.param_groups[0]["momentum"]
        optimizer.step()
        scheduler.step()
    return rates, momenta


def main() -> None:
    """Write the table."""
    table = {}
    for mode in MODES:
        rates, momenta = cyclic_lr(mode, STEPS[-1] + 1)
        table |= {f"lr_{mode}": rates[STEPS], f"momentum_{mode}": momenta[STEPS]}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **table)


if __name__ == "__main__":
    main()
