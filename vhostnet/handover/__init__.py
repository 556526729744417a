"""NICs from one process to another: a spec as plain values, messages with fds, and the proof of what came."""
