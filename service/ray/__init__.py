"""The service on a Ray cluster: the same routes, with each model's engines in replicas of it."""
