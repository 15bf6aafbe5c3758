"""One round: the state machines of coordinator and site, and what they agree on before it."""
