"""What is durable: the logbook, the ledger, leases and migrations."""
