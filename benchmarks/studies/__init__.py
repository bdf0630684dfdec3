"""Claims of papers on attacks and defences, seen with our own engine: a script each, rerun by anybody."""
