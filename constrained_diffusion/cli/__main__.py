"""`python -m constrained_diffusion.cli`, which is what Lightning and torchrun start on each rank."""

from constrained_diffusion.cli import main

if __name__ == "__main__":
    main()
