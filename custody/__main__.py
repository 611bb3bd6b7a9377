"""Begins the command line.

Worker processes import again what began their parent. They shall not pay for a command line that they never use.
"""


def main() -> None:
    """Run `custody` with the arguments of this process; ends it with the command's exit code."""
    from custody.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
