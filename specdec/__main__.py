"""`python -m specdec`, and what `accelerate launch -m specdec bench` starts."""

from .cli import main

if __name__ == "__main__":
    main()
