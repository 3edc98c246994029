"""Which finding stopped the run, what else explains it, and the sentence."""
