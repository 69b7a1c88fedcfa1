"""The worker side of serving: from the bytes of a request to the bytes of its answer.

An archive holds the modules that its model needs, so nothing here imports anything outside of this
package, torch, Pillow and prometheus-client.
"""
