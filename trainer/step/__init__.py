"""What the devices execute: networks, optimizers, batches, the train step and the evaluation."""
