"""What all screens are built of: views, forms, tables, words, blockers, the service handle.

Knows no screen."""
