"""One run over several hosts: an agent on each, which starts today's supervisor for its part."""
