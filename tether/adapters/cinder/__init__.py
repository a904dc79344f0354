"""Cinder: volumes and their attachments, over python-cinderclient."""
