"""Every kernel call that fails, one after the other: nothing is left, and the error says what it was."""
