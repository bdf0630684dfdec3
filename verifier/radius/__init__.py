"""How far can an input move before the network changes its mind? Bounds of that distance from both sides."""
