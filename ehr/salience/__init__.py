"""Which features an expert weighs most: the table, its methods, and how far to trust it."""
