"""The commands of `resnet-serve`, one module each; heavy imports happen when one runs."""
