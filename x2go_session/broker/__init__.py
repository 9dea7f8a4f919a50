"""Session brokers: who tells users which profiles they have, and on which servers."""
