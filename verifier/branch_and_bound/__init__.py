"""Branch and bound: one tree of domains whose splits are input bisections and neuron splits, in any mix."""
