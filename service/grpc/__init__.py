"""The Open Inference Protocol over gRPC: each call is a request to the HTTP application in the same process."""
