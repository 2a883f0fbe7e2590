"""Entry point of `python -m trainer`."""

from trainer import cli

if __name__ == "__main__":
    cli.main()
