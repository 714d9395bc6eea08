"""`python -m orchmgmt` is the command `orchmgmt`."""

from orchmgmt.cli import main

if __name__ == "__main__":
    main(prog_name="orchmgmt")
