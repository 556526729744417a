"""NICs for those who may not make any: a server with the capability, a policy, and the client of it."""
