"""The image, the manifests and the monitoring: how the service runs elsewhere."""
