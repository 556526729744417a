"""What will be done: every kernel act, in order, as data."""
