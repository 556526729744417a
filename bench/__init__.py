"""How long opening a NIC takes, against the bare syscalls. See bench/README.md."""
