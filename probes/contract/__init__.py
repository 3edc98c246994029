"""What the other rooms share with the probes: tables, files, time, errors, live memory."""
