"""What QEMU is told, and what it says of itself."""
