"""What is in the zoo: records only, no torch, no logic."""
