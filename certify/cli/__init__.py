"""The commands of training and evaluation: thin layers over `certify.training` and `certify.evaluation`."""
