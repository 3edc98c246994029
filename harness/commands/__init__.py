"""The commands of the family: their entry points, and what each does around its work."""
