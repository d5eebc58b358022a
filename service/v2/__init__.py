"""The Open Inference Protocol V2 over HTTP, with Triton's extensions, for clients that speak it.

The protocol has a description of its own, so `/openapi.json` leaves it out.
"""
