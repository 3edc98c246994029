"""What pages are made of: tables, figures, numbers, flame graphs."""
