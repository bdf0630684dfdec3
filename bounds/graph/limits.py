"""What a network may ask for at most. A damaged file may state any size, and a few numbers make an operator enormous;
real networks lie far below: 3 million entries is the widest layer of VGG-16, 14 million all of them together."""

from __future__ import annotations

LARGEST_TENSOR = 2**24    # entries of one activation, and of a constant that is computed and not stored
LARGEST_NETWORK = 2**26   # entries of all activations together
MOST_NODES = 50_000
LONGEST_NAME = 60         # of a file's own words in a message


def shown(name: str) -> str:
    """A name from a file as messages quote it: on one line and not too long."""
    return repr(name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME - 3] + "...")
