"""Classes: their names, ImageNet's thousand, and which output of a model stands for which class of the data."""
