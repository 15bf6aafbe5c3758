"""`python -m cohortium` is the `cohortium` command."""

from cohortium.cli import main

main()
