"""How per-example losses become the gradients of one step."""
