"""What people type: `serin` and `kubectl serin`."""
