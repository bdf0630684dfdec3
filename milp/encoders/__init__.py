"""Non-affine operators as rows with binaries, one file each: `encode(encoding, node) -> Form`."""
