"""The eBPF probes: module, probe, C file and table have one name."""
