"""The bundles that ship, each trained by `resnet-serve train`."""
