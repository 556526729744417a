"""What is asked for, as frozen values that know their limits."""
