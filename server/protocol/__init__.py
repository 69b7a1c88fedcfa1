"""Messages and service of the Open Inference Protocol's gRPC form, generated from its proto."""
