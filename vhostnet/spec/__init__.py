"""What is asked for: XML in, an InterfaceSpec out."""
