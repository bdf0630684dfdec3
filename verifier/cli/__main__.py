"""`python -m verifier.cli`: the command line of a checkout that is not installed."""

from verifier.cli import main

main()
