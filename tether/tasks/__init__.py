"""One step per effect, each with its compensation."""
