"""One run as typed frames, a module for each subject."""
