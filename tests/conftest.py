"""Being here puts tests/ on the import path, where the helpers that several folders share lie."""
