"""Training and evaluation: data sets, augmentation, recipes and the loop."""
