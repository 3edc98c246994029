"""What sampled stacks say, whoever asks."""
