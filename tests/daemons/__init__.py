"""What udevd, networkd and NetworkManager of a Debian do to NICs, with the files of examples/host/ and without."""
