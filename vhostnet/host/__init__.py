"""What exists on this host, and who owns it."""
