"""The inference endpoint: HTTP in, opaque bodies on to the model process of the generation that serves."""
