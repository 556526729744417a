"""Who else is on this host: udev and other daemons, bridges, whoever holds a TAP."""
