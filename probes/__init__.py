"""Watches: eBPF, py-spy, psutil and /proc samplers, and the contract that the other rooms share.

The contract is ``schema`` (tables), ``rundir`` (files), ``clock`` (time), ``errors`` (what goes
wrong for a person) and ``live`` (shared memory). It imports no probe.
"""
