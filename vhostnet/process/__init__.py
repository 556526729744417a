"""This process: its file descriptors, its forks, the network namespace of its threads."""
