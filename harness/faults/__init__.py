"""What a run is given on purpose: faults, burners, a full table, limits."""
