"""The edge: gRPC services, batching, identity, workers, metrics and the command line."""
