"""`python -m temper`, which `torchrun -m temper` starts on every process."""

from temper.cli import main

if __name__ == "__main__":
    main()
