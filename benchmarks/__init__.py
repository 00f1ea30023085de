"""How much faster the package is than the loop it replaces, and what a defence costs."""
