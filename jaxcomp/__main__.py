"""`python -m jaxcomp`: the command, where no script of that name is on the path."""

from jaxcomp.cli import main

main()
