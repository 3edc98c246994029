"""What other people's tools read: one module per format, a run in, text or bytes out.

Nothing is imported here: the supervisor takes ``openmetrics_text`` alone, which is lean.
"""
