"""Adapters: Cinder, the host and the guest, as typed protocols; foreign errors are translated here."""
