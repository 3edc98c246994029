"""Puts a server under connections: plans, starts, ramps, holds, stops."""
