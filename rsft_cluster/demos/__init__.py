"""Tasks small enough to learn on two CPU cores in a minute or two, with the models that learn them."""
