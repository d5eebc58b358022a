"""The bundles that ship, each trained by `resnet-serve train`."""

DEFAULT_SPEC = "builtin:resnet10-cifar10"
