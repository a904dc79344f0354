"""What runs inside a lab, from the checkout that it has mounted, on Debian's own Python."""
