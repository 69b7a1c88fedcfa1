"""Trains models, checks them and packs them as TorchServe archives."""
