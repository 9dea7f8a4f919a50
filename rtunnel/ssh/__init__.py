"""SSH connections: the only modules that know paramiko."""
