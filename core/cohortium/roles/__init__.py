"""The contracts: seven roles, the values that they exchange, and the hooks that offer them."""
