"""The command line as `python -m usertwin.evals`, for a console script that is not on the path."""

from .cli.main import main

if __name__ == "__main__":
    main(prog_name="usertwin")
