"""The command line."""


def main(args: list[str] | None = None) -> None:
    """Run the command line; see `constrained_diffusion.cli.command.main`."""
    from constrained_diffusion.cli.command import main as run

    run(args)
