"""`serve run deploy.ray.app:app config=resnet-serve.yaml`, in a checkout."""

from service.ray.app import app

__all__ = ["app"]
