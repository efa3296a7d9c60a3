"""What several benchmarks set up: certificates, databases, agents real and simulated, and what they cost."""
