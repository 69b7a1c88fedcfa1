"""The worker side of serving: from the bytes of a request to the bytes of its answer.

An archive holds those of these modules that its model needs, and runs where the rest of the
repository is absent: so they import nothing but each other, torch, Pillow and prometheus-client.
"""
