"""One recording from the first process to the last, of a run or of a watch."""
