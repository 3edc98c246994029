"""Capacity, use and slope of each limit, and where it is met."""
