"""``python -m circuits``, and ``torchrun -m circuits train``."""

from circuits.cli import main

if __name__ == "__main__":
    main()
