"""libvirt's XML in, an InterfaceSpec or a Network out."""
