"""Checkpoints by Orbax: written in the background, verified when read, the newest good found."""
