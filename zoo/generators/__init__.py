"""Generators over tokens, one file per system."""
