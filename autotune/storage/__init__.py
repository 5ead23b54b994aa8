"""The database of studies, its locks and heartbeats, and the files beside it."""

import os

# gRPC reads it when it is imported. What is forked from a worker loads images and never calls a
# proxy; gRPC would warn at every fork.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
