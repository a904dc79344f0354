"""tether attaches Cinder volumes to libvirt/KVM guests so that nothing is ever left half done."""
