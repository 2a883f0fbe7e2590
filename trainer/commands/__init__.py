"""What is not training: reading, testing, proving and exporting a run, and finding its rates."""
