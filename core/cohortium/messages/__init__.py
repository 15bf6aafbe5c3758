"""Messages as bytes: strictly decoded, bounded, versioned."""
