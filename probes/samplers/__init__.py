"""Probes without eBPF: module, probe and table have one name."""
