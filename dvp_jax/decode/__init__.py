"""The jitted loops: over tokens, over layers, and one step."""
