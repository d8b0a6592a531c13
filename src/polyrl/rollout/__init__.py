"""How experience is generated fast."""
